"""Files for Kubernetes and KServe: flags, probes, rights, and what they refer to.

No cluster is asked. With `pip install kubernetes-validate` the schema is, too.
"""

import re

import pytest

from tests.serving.deployment import (
    CONFIG,
    SERVING,
    check_probe,
    check_server,
    interpolate,
    parse_flags,
    read_yaml,
)


def named(kind):
    (found,) = (it for it in read_yaml("kubernetes.yaml") if it["kind"] == kind)
    return found


def pod():
    return named("Deployment")["spec"]["template"]["spec"]


def container():
    (found,) = pod()["containers"]
    return found


def test_kubernetes_knows_every_field():
    validator = pytest.importorskip("kubernetes_validate")
    for document in read_yaml("kubernetes.yaml"):
        validator.validate(document, "1.37", strict=True)


def test_flags_and_mounts_exist():
    serving = container()
    assert serving["command"] == ["tensorflow_model_server"]
    flags = parse_flags(serving["args"])
    check_server(flags)
    assert flags["enable_batching"] == "true"
    cores = serving["resources"]["requests"]["cpu"]
    assert flags["tensorflow_intra_op_parallelism"] == cores
    volumes = {it["name"]: it for it in pod()["volumes"]}
    mounts = {it["mountPath"]: it["name"] for it in serving["volumeMounts"]}
    claim = volumes[mounts["/models"]]["persistentVolumeClaim"]["claimName"]
    assert claim == named("PersistentVolumeClaim")["metadata"]["name"]
    config_map = volumes[mounts["/config"]]["configMap"]["name"]
    text = (SERVING / "kubernetes.yaml").read_text()
    assert f"kubectl create configmap {config_map} --from-file=serving/config" in text
    # what a ConfigMap holds lies in one folder
    assert all(path.is_file() for path in CONFIG.iterdir())


def test_the_image_is_that_of_the_compose_file():
    (document,) = read_yaml("docker-compose.yml")
    image = interpolate(document["services"]["cpu"]["image"], {})
    assert container()["image"] == image


def test_requests_go_to_pods_that_are_ready():
    deployment, service, serving = named("Deployment"), named("Service"), container()
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"]
    assert labels == service["spec"]["selector"]
    ports = {it["name"]: it["containerPort"] for it in serving["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {it["targetPort"] for it in service["spec"]["ports"]} == set(ports)
    assert {it["port"] for it in service["spec"]["ports"]} == set(ports.values())
    for probe in ("startupProbe", "readinessProbe"):
        check_probe(serving[probe]["exec"]["command"])
        assert serving[probe]["timeoutSeconds"] > 4  # the script's own limit
    assert serving["livenessProbe"]["tcpSocket"]["port"] in ports


def test_metrics_are_found():
    annotations = named("Deployment")["spec"]["template"]["metadata"]["annotations"]
    (path,) = re.findall(r'path: "(.*)"', (CONFIG / "monitoring.config").read_text())
    assert annotations["prometheus.io/path"] == path
    # TF Serving has them on the REST port
    assert annotations["prometheus.io/port"] == "8501"


def test_pods_end_gracefully():
    spec = named("Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert pod()["shareProcessNamespace"]
    _, seconds = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert int(seconds) < pod()["terminationGracePeriodSeconds"]
    # by then every gRPC connection has ended
    (age,) = re.findall(r"max_connection_age_ms=(\d+)", " ".join(container()["args"]))
    assert int(age) < 1000 * int(seconds)


def test_pods_have_few_rights():
    rights, of_pod = container()["securityContext"], pod()["securityContext"]
    assert rights["readOnlyRootFilesystem"] and not rights["allowPrivilegeEscalation"]
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert of_pod["runAsNonRoot"] and of_pod["runAsUser"] > 0
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod()["automountServiceAccountToken"] is False


def test_enough_pods_stay():
    scaler = named("HorizontalPodAutoscaler")["spec"]
    deployment = named("Deployment")
    target = scaler["scaleTargetRef"]
    assert target["kind"] == "Deployment"
    assert target["name"] == deployment["metadata"]["name"]
    # else each `kubectl apply` would undo what the autoscaler did
    assert "replicas" not in deployment["spec"]
    assert 2 <= scaler["minReplicas"] < scaler["maxReplicas"]
    budget = named("PodDisruptionBudget")["spec"]
    labels = deployment["spec"]["selector"]
    assert budget["selector"] == labels
    assert budget["maxUnavailable"] < scaler["minReplicas"]


def test_only_known_pods_get_in_and_nothing_gets_out():
    policy = named("NetworkPolicy")["spec"]
    assert policy["podSelector"] == named("Deployment")["spec"]["selector"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    clients, monitoring = policy["ingress"]
    assert clients["from"] == [{"podSelector": {"matchLabels": {"mae-client": "true"}}}]
    assert {it["port"] for it in clients["ports"]} == {"grpc", "rest"}
    assert [it["port"] for it in monitoring["ports"]] == ["rest"]
    (egress,) = policy["egress"]
    assert {it["port"] for it in egress["ports"]} == {53}


# those of KServe's own runtime, which come before
RUNTIME_FLAGS = {
    *("model_name", "port", "rest_api_port", "model_base_path"),
    "rest_api_timeout_in_ms",
}


def test_kserve_serves_the_same_claim_and_version():
    (service,) = read_yaml("kserve.yaml")
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    predictor = service["spec"]["predictor"]
    model = predictor["model"]
    claim = named("PersistentVolumeClaim")["metadata"]["name"]
    assert model["storageUri"] == f"pvc://{claim}/mae"
    assert container()["image"] == f"tensorflow/serving:{model['runtimeVersion']}"
    flags = parse_flags(model["args"])
    assert not set(flags) & RUNTIME_FLAGS
    assert flags["enable_batching"] == "true"
    assert flags["enable_per_model_batching_parameters"] == "true"
    cores = model["resources"]["requests"]["cpu"]
    assert flags["tensorflow_intra_op_parallelism"] == cores
