"""The sub-commands of `mmcot`: each module parses, calls one public function and prints."""
