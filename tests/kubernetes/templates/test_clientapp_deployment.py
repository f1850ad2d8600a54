"""templates/clientapp/deployment.yaml"""

from __future__ import annotations

from charts import container, env, mounts, refused, rendered, volume


def test_attends_its_own_supernode() -> None:
    chart = rendered("minimal")
    for site in ("one", "two"):
        clientapp = chart.one("Deployment", f"clientapp-{site}")
        said = env(container(clientapp))
        assert said["TRELLIS_CLIENTAPPIO_API_ADDRESS"] == f"trellis-supernode-{site}:9094"
        assert volume(clientapp, "join")["secret"]["items"] == [{"key": site, "path": "token"}]


def test_shows_who_it_is_with_tls() -> None:
    clientapp = rendered("tls").one("Deployment", "clientapp-berlin")
    said = env(container(clientapp))
    assert (said["TRELLIS_CERTFILE"], said["TRELLIS_ROOT_CERTIFICATES"]) == ("/certs/tls.crt", "/certs/ca.crt")
    [source] = volume(clientapp, "certs")["projected"]["sources"]
    assert source["secret"]["name"] == "trellis-clientapp-berlin-tls"


def test_none_in_the_same_pod_or_where_others_start_it() -> None:
    assert "trellis-clientapp-paris" not in rendered("tls").names("Deployment")
    assert not rendered("minimal", {"clientapp": {"enabled": False}}).of("clientapp/deployment")


def test_the_sites_data() -> None:
    claim = {"persistentVolumeClaim": {"claimName": "records", "readOnly": True}}
    site = {"name": "x", "clientapp": {"data": {"volume": claim}, "settings": {"slots": 2, "guest-memory": "4GiB"}}}
    clientapp = rendered(None, {"supernodes": [site]}).one("Deployment", "clientapp-x")
    assert volume(clientapp, "data") == {"name": "data", **claim}
    assert mounts(container(clientapp))["/data"] == "data"
    [mounted] = [one for one in container(clientapp)["volumeMounts"] if one["name"] == "data"]
    assert mounted["readOnly"] is True
    assert env(container(clientapp))["TRELLIS_SLOTS"] == "2"
    assert env(container(clientapp))["TRELLIS_GUEST_MEMORY"] == "4GiB"


def test_more_in_the_same_pod_are_refused() -> None:
    assert "clientapp.replicas to 1" in refused(
        {"supernodes": [{"name": "x", "samePod": True, "clientapp": {"replicas": 2}}]}
    )
    scaled = {"name": "x", "samePod": True, "clientapp": {"autoscaling": {"enabled": True}}}
    assert "clientapp.autoscaling off" in refused({"supernodes": [scaled]})
