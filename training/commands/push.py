"""`mmcot push`: a finished repository folder to the Hub, after a look whether it is complete.

A repository with a shard, a code file or a licence missing looks well on the Hub and fails, or can't be used, in the
hands of others. So the folder is checked first, and of it only what belongs to a repository is uploaded: no optimiser
states, no checkpoints, no logs.
"""


def add_arguments(parser) -> None:
    parser.description = (
        "Check that FOLDER is a complete repository and upload it to the Hugging Face Hub. Log in first: hf auth login"
    )
    parser.add_argument("folder", metavar="FOLDER", help="what save_pretrained (or mmcot demo, in hub/) left")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name; made if there is no such repository")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to, made if missing (default: main)")
    parser.add_argument("--dry-run", action="store_true", help="check FOLDER and list what would go; nothing is sent")


def run(args) -> int:
    from mmcot.training.hub.push import listing, push, usage

    if args.dry_run:
        print(listing(args.folder, args.repo_id))
        return 0

    url = push(args.folder, args.repo_id, private=args.private, revision=args.revision)
    print(f"{url}\n\nTo use it, pinned to this commit:\n\n{usage(url)}")
    return 0
