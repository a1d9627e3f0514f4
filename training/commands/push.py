"""Publish a finished repository folder on the Hugging Face Hub, after a look whether it is complete.

  hf auth login                                        once, with a token that may write
  mmcot push runs/base/hub user/name --dry-run         what would go; nothing is sent
  mmcot push runs/base/hub user/name
  mmcot push runs/base/hub user/name --space           also a Space, a page that asks the model

A repository with a shard, a code file or a licence missing looks well on the Hub and fails, or can't be used, in the
hands of others. So the folder is checked first, and of it only what belongs to a repository is uploaded: no optimiser
states, no checkpoints, no logs.
"""


def add_arguments(parser) -> None:
    parser.add_argument("folder", metavar="FOLDER", help="what save_pretrained (or mmcot demo, in hub/) left")
    parser.add_argument("repo_id", metavar="REPO_ID", help="user/name; made if there is no such repository")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to commit to, made if missing (default: main)")
    parser.add_argument(
        "--space",
        nargs="?",
        const="",
        metavar="SPACE_ID",
        help="also a Space, a page that asks this model (default: of the same name)",
    )
    parser.add_argument("--dry-run", action="store_true", help="check FOLDER and list what would go; nothing is sent")


def run(args) -> int:
    from mmcot.training.hub.push import check_name, listing, push, usage
    from mmcot.training.hub.space import push_space, space_files

    space = args.repo_id if args.space == "" else args.space
    if space is not None:  # before the model is on its way
        check_name(space)
    if args.dry_run:
        print(listing(args.folder, args.repo_id))
        if space is not None:
            print(f"To the Space {space} would go: {', '.join(space_files(args.repo_id, args.folder))}")
        return 0

    url = push(args.folder, args.repo_id, private=args.private, revision=args.revision)
    if space is not None:
        repository, commit = url.rsplit("/tree/", 1)
        model = "/".join(repository.split("/")[-2:])
        print(f"{push_space(model, space, args.folder, revision=commit, private=args.private)} is its page")
    print(f"{url}\n\nTo use it, pinned to this commit:\n\n{usage(url)}")
    return 0
