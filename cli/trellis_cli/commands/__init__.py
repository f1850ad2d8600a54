"""The commands by name. Each lives in a module of its own that is imported only when it is used."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """`module` has `arguments(parser)` and `execute(args, out) -> exit code`."""

    name: str
    summary: str
    module: str
    alias_of: str | None = None


def _absent(name: str, summary: str) -> Command:
    return Command(name, summary, "absent")


COMMANDS: tuple[Command, ...] = (
    Command("run", "run a Flower App on a federation", "run"),
    Command("list", "list runs (ls)", "runs"),
    Command("ls", "list runs", "runs", alias_of="list"),
    Command("log", "follow a run's log", "log"),
    Command("stop", "stop a run", "stop"),
    Command("pull", "show where to fetch what a run left behind", "pull"),
    Command("login", "log in to a SuperLink", "login"),
    Command("logout", "forget the login at a SuperLink", "logout"),
    Command("build", "pack an app into a FAB file", "build"),
    Command("new", "write a small app to begin with", "new"),
    Command("supernode list", "list the SuperNodes of a federation (ls)", "supernode_list"),
    Command("supernode ls", "list the SuperNodes of a federation", "supernode_list", alias_of="supernode list"),
    Command("supernode register", "admit a SuperNode by its public key", "supernode_register"),
    Command("supernode unregister", "remove a SuperNode", "supernode_unregister"),
    Command("config list", "list the configured SuperLinks (ls)", "config_list"),
    Command("config ls", "list the configured SuperLinks", "config_list", alias_of="config list"),
    Command("certs init", "make the CAs and certificates of a deployment", "certs_init"),
    Command("certs issue", "issue the certificate of one role", "certs_issue"),
    Command("certs renew", "renew certificates that expire soon", "certs_renew"),
    Command("certs show", "show certificates and when they expire", "certs_show"),
    Command("up", "start a federation on this machine and keep it", "up"),
    Command("down", "end the federation that `up --detach` started", "down"),
    Command("demo", "start a federation, train an app on it, end it", "demo"),
    _absent("install", "unpack a FAB"),
    _absent("chat", "talk to an AgentApp"),
    _absent("app publish", "publish an app on Flower Hub"),
    _absent("app review", "review an app on Flower Hub"),
    _absent("federation list", "list federations"),
    _absent("federation ls", "list federations"),
    _absent("federation show", "show a federation"),
    _absent("federation create", "create a federation"),
    _absent("federation archive", "archive a federation"),
    _absent("federation add-supernode", "add a SuperNode to a federation"),
    _absent("federation remove-supernode", "remove a SuperNode from a federation"),
    _absent("federation remove-account", "remove an account from a federation"),
    _absent("federation simulation-config", "configure a simulation"),
    _absent("federation invite", "manage invitations"),
)

BY_NAME = {command.name: command for command in COMMANDS}
GROUPS = frozenset(command.name.split()[0] for command in COMMANDS if " " in command.name)
