"""Entry point of the command line's image: runs a command as the owner of the app's folder.

Started as root (compose.yaml does, with the capabilities to become somebody else and no other), it becomes the owner
of the working directory first, so that what a command writes there belongs to the person who mounted it. Started as
anybody else, it stays that.
"""

import os
import sys


def main() -> None:
    """Never returns: becomes the command in `sys.argv[1:]`."""
    if os.geteuid() == 0:
        owner = os.stat(os.getcwd())  # by its path: into the folder itself only its owner may look
        os.setgroups([])
        os.setgid(owner.st_gid)
        os.setuid(owner.st_uid)
    command = sys.argv[1:]
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}; commands begin with flwr, as in: flwr run", file=sys.stderr)
        sys.exit(127)


if __name__ == "__main__":
    main()
