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
    Command("supernode approve", "let a SuperNode take part that waits for it", "supernode_approve"),
    Command("supernode register", "admit a SuperNode by its public key", "supernode_register"),
    Command("supernode unregister", "remove a SuperNode", "supernode_unregister"),
    Command("federation list", "list federations, or show one (ls)", "federation_list"),
    Command("federation ls", "list federations, or show one", "federation_list", alias_of="federation list"),
    Command("federation show", "show a federation", "federation_show"),
    Command("federation create", "create a federation", "federation_create"),
    Command("federation archive", "archive a federation", "federation_archive"),
    Command("federation add-supernode", "add a SuperNode to a federation", "federation_add_supernode"),
    Command("federation remove-supernode", "take a SuperNode out of a federation", "federation_remove_supernode"),
    Command("federation remove-account", "take an account out of a federation, or leave", "federation_remove_account"),
    Command("federation invite list", "list invitations (ls)", "invite_list"),
    Command("federation invite ls", "list invitations", "invite_list", alias_of="federation invite list"),
    Command("federation invite create", "invite an account to a federation", "invite_create"),
    Command("federation invite accept", "accept an invitation", "invite_accept"),
    Command("federation invite reject", "reject an invitation", "invite_reject"),
    Command("federation invite revoke", "take an invitation back", "invite_revoke"),
    Command("config list", "list the configured SuperLinks (ls)", "config_list"),
    Command("config ls", "list the configured SuperLinks", "config_list", alias_of="config list"),
    Command("certs init", "make the CAs and certificates of a deployment", "certs_init"),
    Command("certs issue", "issue the certificate of one role", "certs_issue"),
    Command("certs renew", "renew certificates that expire soon", "certs_renew"),
    Command("certs kubernetes", "keep certificates in Kubernetes' Secrets, from a pod", "certs_kubernetes"),
    Command("certs show", "show certificates and when they expire", "certs_show"),
    Command("up", "start a federation on this machine and keep it", "up"),
    Command("down", "end the federation that `up --detach` started", "down"),
    Command("demo", "start a federation, train an app on it, end it", "demo"),
    _absent("install", "unpack a FAB"),
    _absent("chat", "talk to an AgentApp"),
    _absent("app publish", "publish an app on Flower Hub"),
    _absent("app review", "review an app on Flower Hub"),
    _absent("federation simulation-config", "configure a simulation"),
)

BY_NAME = {command.name: command for command in COMMANDS}
GROUPS = frozenset(
    " ".join(words[:length])
    for words in (command.name.split() for command in COMMANDS)
    for length in range(1, len(words))
)
"""What commands begin with that have several words."""
