import boto3
import made_up
import pytest
from moto.server import ThreadedMotoServer
from test_pipeline import tree

from chipgen.__main__ import main
from chipgen.storage import RemoteFolder, open_folder


@pytest.fixture(scope="module")
def bucket():
    """Run a local S3 server and make a bucket in it; once, as fsspec keeps its connections."""
    monkeypatch = pytest.MonkeyPatch()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="fovea")
    yield client
    client.close()
    server.stop()
    monkeypatch.undo()


def objects(client, prefix: str) -> dict[str, bytes]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="fovea", Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    return {
        key.removeprefix(prefix): client.get_object(Bucket="fovea", Key=key)["Body"].read()
        for key in keys
    }


def test_shards_written_to_s3_are_those_written_to_a_folder(tmp_path, bucket):
    data, recipe = made_up.coco(tmp_path / "data", 10), str(made_up.recipe(tmp_path / "r.toml"))
    for path in data.rglob("*.*"):
        name = str(path.relative_to(data))
        bucket.put_object(Bucket="fovea", Key=f"data/{name}", Body=path.read_bytes())
    local = tmp_path / "run"
    for where, source in (("s3://fovea/run", "s3://fovea/data"), (str(local), str(data))):
        assert main(["plan", where, "--data", source, "--recipe", recipe]) == 0
        assert main(["negatives", where]) == 0
        assert main(["write", where, "--workers", "2"]) == 0
        assert main(["verify", where]) == 0
        assert main(["stats", where]) == 0
        assert main(["write", where, "--workers", "2"]) == 0  # up to date
    remote = objects(bucket, "run/shards/")
    assert len(remote) > 8
    assert remote.keys() == tree(local / "shards").keys()
    for name, body in remote.items():
        assert body == (local / "shards" / name).read_bytes(), name


def test_a_remote_folder_behaves_as_a_folder_does(tmp_path, bucket):
    for folder in (open_folder("s3://fovea/some"), open_folder(tmp_path / "some")):
        assert folder.names() == []
        assert folder.is_empty()
        assert not folder.exists("a/b")
        folder.write("a/b", b"0123456789")
        folder.write("c", b"")
        assert folder.names() == ["a", "c"]
        assert folder.exists("a")
        assert not folder.is_empty()
        assert not folder.sub("a").is_empty()
        assert folder.sub("b").is_empty()
        assert (folder.size("a/b"), folder.size("c")) == (10, 0)
        assert folder.read("a/b") == b"0123456789"
        assert folder.read("a/b", 3, 4) == b"3456"
        assert folder.sub("a").read("b", 8) == b"89"
        folder.remove("c")
        folder.remove("c")
        folder.remove_tree("a")
        folder.remove_tree("a")
        assert folder.names() == []
        with pytest.raises(FileNotFoundError):
            folder.read("a/b")
    assert isinstance(open_folder("s3://fovea/some"), RemoteFolder)
