"""templates/certificates/leftovers.yaml"""

from __future__ import annotations

from charts import rendered


def test_an_uninstall_takes_the_certificates_along_and_leaves_the_authorities() -> None:
    chart = rendered("tls")
    left = chart.of("certificates/leftovers")
    [role] = chart.of("certificates/job").kind("Role")
    assert {one["metadata"]["name"] for one in left} == set(role["rules"][1]["resourceNames"]) - {"trellis-authorities"}
    for one in left:
        assert one["metadata"]["annotations"]["helm.sh/hook"] == "post-delete"
        policy = one["metadata"]["annotations"]["helm.sh/hook-delete-policy"].split(",")
        assert set(policy) == {"before-hook-creation", "hook-succeeded"}


def test_secrets_of_the_operators_are_left_alone() -> None:
    assert not rendered(None, {"tls": {"source": "existingSecrets"}}).of("certificates/leftovers")
