"""Helm for the tests: one request in JSON on standard input, one answer in JSON on standard output.

The library is Helm's own, in the wheel helm-python-sdk; e2e/setup/helm.sh installs it. A request has an `action`, and
the arguments of that action by the names below.
"""

import json
import sys

import helm_python as helm


def render(request):
    """Rendered without a cluster: file to text."""
    with helm.Chart.load(request["chart"]) as chart:
        return chart.render(
            request.get("values"), name=request["release"], namespace=request["namespace"]
        )


def values_error(request):
    """What the schema has against some values; null where nothing."""
    with helm.Chart.load(request["chart"]) as chart:
        try:
            chart.validate_schema(request.get("values"))
        except helm.HelmValuesError as error:
            return str(error)
    return None


def lint(request):
    return helm.lint(request["chart"], request.get("values"), strict=True, namespace=request["namespace"])


def cluster(call):
    """An action on the release of a request, in the cluster of its kubeconfig."""

    def run(request):
        with helm.Config(kubeconfig_path=request["kubeconfig"], namespace=request["namespace"]) as config:
            return call(config, request)

    return run


def chart_arguments(request):
    optional = {key: request[key] for key in ("dry_run", "timeout") if key in request}
    return {"values": request.get("values"), "namespace": request["namespace"], **optional}


ACTIONS = {
    "render": render,
    "values_error": values_error,
    "lint": lint,
    "install": cluster(lambda c, r: c.install(r["chart"], r["release"], **chart_arguments(r))),
    "upgrade": cluster(lambda c, r: c.upgrade(r["chart"], r["release"], **chart_arguments(r))),
    "rollback": cluster(lambda c, r: c.rollback(r["release"], version=r["version"])),
    "test": cluster(lambda c, r: c.test(r["release"], timeout=r.get("timeout"))),
    "uninstall": cluster(lambda c, r: c.uninstall(r["release"], timeout=r.get("timeout"))),
    "history": cluster(lambda c, r: c.history(r["release"])),
}


def main():
    request = json.load(sys.stdin)
    try:
        answer = {"ok": ACTIONS[request["action"]](request)}
    except helm.HelmError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
