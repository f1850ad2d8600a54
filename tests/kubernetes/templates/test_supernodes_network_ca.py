"""templates/supernodes/network-ca.yaml"""

from __future__ import annotations

from charts import refused, rendered, volume

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def test_the_ca_of_a_superlink_elsewhere_as_a_value() -> None:
    values = {"externalSuperlink": {"caCertificate": PEM, "caSecret": {"name": ""}}, "tls": {"source": "certManager"}}
    chart = rendered("site-only", values)
    assert chart.one("ConfigMap", "network-ca")["data"]["ca.crt"] == PEM
    sources = volume(chart.one("StatefulSet", "supernode-berlin"), "certs")["projected"]["sources"]
    assert {"configMap": {"name": "trellis-network-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}} in sources


def test_not_twice() -> None:
    assert "not both" in refused({"externalSuperlink": {"caCertificate": PEM}}, "site-only")
