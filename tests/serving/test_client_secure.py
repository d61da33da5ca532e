"""serving/mae_client: TLS, client certificates, tokens and headers."""

import re
import ssl
import subprocess

import grpc
import pytest

from tests import stand_ins
from tests.scripts import load
from tests.stand_ins import GrpcStub, RestStub, connect, grey, mae_client

Attempts, ServingError = mae_client.retries.Attempts, mae_client.ServingError
stub, stub_class = stand_ins.stub, stand_ins.stub_class
TOKEN = "secret-0123"


def openssl(folder, *arguments):
    subprocess.run(
        ["openssl", *map(str, arguments)], cwd=folder, check=True, capture_output=True
    )


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with an authority, and a server and a client that it certifies."""
    folder = tmp_path_factory.mktemp("keys")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "stranger"):
        openssl(
            folder,
            *("req", "-x509", *new, "-keyout", f"{name}.key", "-out", f"{name}.pem"),
            *("-days", 2, "-subj", f"/CN={name}"),
            *("-addext", "keyUsage=critical,keyCertSign"),
        )
    # from Python 3.13 on, a certificate must say which key signed it
    (folder / "names").write_text(
        "subjectAltName=IP:127.0.0.1,DNS:localhost\nauthorityKeyIdentifier=keyid\n"
    )
    for name in ("server", "client"):
        openssl(
            folder,
            *("req", *new, "-keyout", f"{name}.key", "-out", f"{name}.csr"),
            *("-subj", f"/CN={name}"),
        )
        openssl(
            folder,
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey"),
            *("ca.key", "-CAcreateserial", "-days", 2, "-extfile", "names"),
            *("-out", f"{name}.pem"),
        )
    return folder


def start(stub_class, keys, mutual):
    """Starts a stand-in with TLS, which asks for the client's certificate if mutual."""
    if stub_class is RestStub:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(keys / "server.pem", keys / "server.key")
        if mutual:
            context.load_verify_locations(keys / "ca.pem")
            context.verify_mode = ssl.CERT_REQUIRED
        return RestStub(context=context)
    key, chain, ca = (
        (keys / name).read_bytes() for name in ("server.key", "server.pem", "ca.pem")
    )
    return GrpcStub(
        credentials=grpc.ssl_server_credentials(
            [(key, chain)], ca if mutual else None, mutual
        )
    )


def test_the_server_is_verified(stub_class, keys):
    with start(stub_class, keys, mutual=False) as stub:
        with connect(stub, tls=True, ca_file=keys / "ca.pem", token=TOKEN) as asked:
            assert asked.features(grey(3)).features[0, 0, 0] == 3
        assert stub.brain.headers[-1]["authorization"] == f"Bearer {TOKEN}"
        for options in ({}, {"ca_file": keys / "stranger.pem"}):
            with (
                connect(stub, tls=True, retries=0, token=TOKEN, **options) as asked,
                pytest.raises(ServingError) as error,
            ):
                asked.features(grey(3))
            assert error.value.code == "UNAVAILABLE" and TOKEN not in str(error.value)
            with pytest.raises(ServingError):  # not tried again
                Attempts(timeout=60, retries=None).pause_after(error.value)
    # a token never went to whom wasn't verified
    assert len(stub.brain.headers) == 1


def test_https_addresses_and_unverified_servers(keys):
    with start(RestStub, keys, mutual=False) as stub:
        address = f"https://{stub.address}"
        with mae_client.Client(address, ca_file=keys / "ca.pem") as asked:
            assert asked.status()
        with mae_client.Client(address, verify=False) as asked:
            assert asked.status()


def test_client_certificates(stub_class, keys):
    with start(stub_class, keys, mutual=True) as stub:
        options = {"tls": True, "ca_file": keys / "ca.pem"}
        own = {"cert_file": keys / "client.pem", "key_file": keys / "client.key"}
        with connect(stub, **options, **own) as asked:
            assert asked.features(grey(3)).features[0, 0, 0] == 3
        with (
            connect(stub, **options, retries=0) as asked,
            pytest.raises(ServingError) as error,
        ):
            asked.features(grey(3))
        assert error.value.code == "UNAVAILABLE"


def test_headers_go_with_each_request(stub):
    headers = {"X-Team": "vision", "User-Agent": "mine"}
    with connect(stub, token=TOKEN, headers=headers) as asked:
        asked.features(grey(1))
        asked.metadata()
        assert TOKEN not in repr(asked) + repr(vars(asked))
    assert len(stub.brain.headers) == 2
    for sent in stub.brain.headers:
        assert sent["authorization"] == f"Bearer {TOKEN}" and sent["x-team"] == "vision"


@pytest.mark.parametrize(
    "options",
    [
        {"ca_file": "{ca}"},
        {"verify": False},
        {"tls": True, "address": "http://localhost"},
        {"tls": True, "key_file": "{ca}"},
        {"tls": True, "ca_file": "missing.pem"},
        {"tls": True, "ca_file": "{names}"},
        {"tls": True, "grpc": True, "verify": False},
        {"tls": True, "grpc": True, "cert_file": "{ca}"},
        {"tls": True, "cert_file": "{ca}", "key_file": "{stranger}"},
        {"tls": True, "cert_file": "{ca}", "key_file": "{stranger}", "grpc": True},
        {"tls": True, "ca_file": "{names}", "grpc": True},
        {"address": f"https://user:{TOKEN}@localhost"},
        {"token": f"{TOKEN}\n"},
        {"token": ""},
        {"token": f"ü{TOKEN}"},
        {"headers": {"X-Key": f"{TOKEN}\r\nX: y"}},
        {"headers": {f"{TOKEN} ": "x"}, "hidden": ""},
        {"headers": {"x-key-bin": TOKEN}, "grpc": True},
        {"headers": {"authorization": TOKEN}, "token": TOKEN},
        {"headers": {"Content-Length": "5"}},
        {"headers": {"Accept-Encoding": "br"}},
        {"headers": {"grpc-timeout": "1S"}, "grpc": True},
    ],
)
def test_wrong_options_are_refused_without_their_secrets(keys, options):
    places = {name: keys / f"{name}.pem" for name in ("ca", "stranger")}
    places["names"] = keys / "names"
    options = {
        name: value.format(**places) if isinstance(value, str) else value
        for name, value in options.items()
    }
    hidden = options.pop("hidden", TOKEN)
    with pytest.raises((ValueError, OSError)) as error:
        mae_client.Client(**options)
    assert not hidden or hidden not in str(error.value)


def test_flags_of_the_command(stub_class, keys, monkeypatch, capsys):
    client = load("serving/client.py")
    monkeypatch.setenv("MAE_TOKEN", TOKEN)
    with start(stub_class, keys, mutual=True) as stub:
        flags = ["--grpc"] if stub.grpc else []
        flags += ["--address", stub.address, "--tls", f"--cacert={keys / 'ca.pem'}"]
        flags += [f"--cert={keys / 'client.pem'}", f"--key={keys / 'client.key'}"]
        flags += ["--token_env=MAE_TOKEN", "-H", "X-Team: vision", "--gzip"]
        client.main(["metadata", *flags])
    (sent,) = stub.brain.headers
    assert sent["authorization"] == f"Bearer {TOKEN}" and sent["x-team"] == "vision"
    monkeypatch.delenv("MAE_TOKEN")
    for wrong in (["--token_env=MAE_TOKEN"], ["--header", TOKEN]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            client.main(["metadata", *wrong])
        (line,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and re.search("token_env|header", line)
        assert TOKEN not in line
