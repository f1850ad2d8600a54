"""What the command line tells its user when something fails, and the exit codes for scripts (`--help` lists them)."""

EXIT_OK = 0
EXIT_FAILED = 1  # the SuperLink refused, or the run that was waited for failed or was stopped
EXIT_USAGE = 2  # the command, an app or a configuration file is wrong; nothing was sent
EXIT_UNREACHABLE = 3  # nobody answers, or the SuperLink asks to try again later
EXIT_INTERRUPTED = 130  # Ctrl-C


class CliError(Exception):
    """Ends the command: `str(error)` is a sentence that says what is wrong and what to do."""

    def __init__(self, sentence: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


class UsageError(CliError):
    """The command, the app or a configuration file is wrong; nothing was sent."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, EXIT_USAGE)


class Unreachable(CliError):
    """Nobody answers where the SuperLink should be, or it asks to try again later."""

    def __init__(self, sentence: str) -> None:
        super().__init__(sentence, EXIT_UNREACHABLE)
