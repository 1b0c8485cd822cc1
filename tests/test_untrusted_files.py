"""What comes from outside is data: it is never executed, and writes only where the user said.

Checkpoints, exports, pretrained folders, configs, tables and texts may come from anyone. Each test
hands over one that tries to make a folder, and finds that it was not made.
"""

import ast
import io
import json
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import lit_foundry
from lit_foundry import TextEncoder
from lit_foundry.checkpoints.exported import exported_logits
from lit_foundry.checkpoints.files import CheckpointError, load_data, load_task
from lit_foundry.checkpoints.torch_program import load_program
from lit_foundry.cli.main import main
from lit_foundry.data.corpus.shard_writer import shard_folder
from lit_foundry.data.corpus.shards import TokenShards
from lit_foundry.data.text.tokenizer import load_tokenizer, tokenizer_from_files
from lit_foundry.export import command as exporting
from lit_foundry.report import command as report
from lit_foundry.runs.predictions import Predictions
from lit_foundry.sources import ForeignCodeError
from lit_foundry.usage import UsageError
from tests.conftest import REPO, reviews, tiny_config, write_config, write_csv

Change = Callable[[dict[str, Any]], object]
MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"
CONSTANTS, INPUTS = "data/constants/model_constants_config.json", "data/sample_inputs/model.pt"


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the tiny config."""
    folder = tmp_path_factory.mktemp("trusted")
    write_csv(folder / "train.csv", reviews(60, seed=0))
    config = write_config(folder / "tiny.yaml", tiny_config(folder))
    cli = main(["fit", "--config", str(config), "--trainer.max_epochs", "1"])
    return cli.run.path / "checkpoints" / "best.ckpt"


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Path]:
    """The folder that an attack makes."""
    place = tmp_path / "made"
    yield place
    assert not place.exists()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, which ``python -m`` puts in front of all places of modules."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    return folder


class Attack:
    """Makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = str(made)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.made,)


def changed(best: Path, folder: Path, change: Change) -> Path:
    """Write a checkpoint with another recipe or state."""
    checkpoint = torch.load(best, weights_only=True)
    change(checkpoint["lit_foundry"])
    torch.save(checkpoint, folder / "changed.ckpt")
    return folder / "changed.ckpt"


def refuses(path: Path, match: str) -> None:
    """Check that nothing that takes a checkpoint takes this one."""
    words = ["predict", "--ckpt_path", str(path), "--input", str(path.with_name("texts.txt"))]
    path.with_name("texts.txt").write_text("great\n", encoding="utf-8")
    output = str(path.with_name("export"))
    for use in (
        lambda: lit_foundry.load(path),
        lambda: main(words),
        lambda: exporting.main(
            ["--ckpt_path", str(path), "--format", "safetensors", "--output", output]
        ),
    ):
        with pytest.raises(ValueError, match=match) as error:
            use()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["model", "data"])
def test_a_recipe_is_a_mapping(part: str, best: Path, tmp_path: Path) -> None:
    def change(ours: dict[str, Any]) -> None:
        ours[part] = "TextFiles"

    refuses(changed(best, tmp_path, change), f"what it says of its {part} is no recipe")


def test_a_recipe_of_aliases_of_aliases_is_refused_in_a_second(best: Path, tmp_path: Path) -> None:
    def change(ours: dict[str, Any]) -> None:
        part: Any = ["x"]
        for _ in range(60):
            part = [part, part]
        ours["model"] = {"class_path": part}

    refuses(changed(best, tmp_path, change), "hold over 1,000,000 values")


def test_changes_are_of_networks_alone(best: Path, tmp_path: Path) -> None:
    def change(ours: dict[str, Any]) -> None:
        ours["data"]["changes"] = [{"op": "resize", "module": "x", "out_features": 3}]

    refuses(changed(best, tmp_path, change), "changes are made to a network, and not")


# Pickles


def test_a_pickle_in_a_checkpoint_is_not_run(made: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "lit_foundry": Attack(made)}, tmp_path / "a.ckpt")
    refuses(tmp_path / "a.ckpt", "cannot be read")


def test_a_pickle_among_pretrained_weights_is_not_run(made: Path, tmp_path: Path) -> None:
    bert = tiny_config(tmp_path)["model"]["init_args"]["backbone"]["init_args"]["config"]
    (tmp_path / "config.json").write_text(json.dumps(bert | {"vocab_size": 99}), encoding="utf-8")
    torch.save({"embeddings": Attack(made)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"Weights only load failed|posix"):
        TextEncoder(str(tmp_path))


def test_a_pickle_in_an_array_is_not_run(made: Path, tmp_path: Path) -> None:
    said = {"fingerprint": "", "shards": 1, "dtype": "uint16"}
    (tmp_path / "corpus.json").write_text(json.dumps(said), encoding="utf-8")
    shard = shard_folder(tmp_path, 0)
    shard.mkdir()
    (shard / "ids.bin").write_bytes(bytes(4))
    np.save(shard / "documents.npy", np.array([Attack(made)], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        TokenShards(tmp_path)


def test_no_call_of_a_library_may_run_what_it_reads() -> None:
    stated = {"load": ("torch", "weights_only=True")}
    stated |= dict.fromkeys(("from_pretrained", "from_config"), ("", "trust_remote_code=False"))
    never = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load"}
    found = []
    for path in [*(REPO / "lit_foundry").rglob("*.py"), *(REPO / "scripts").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            owner, _, name = ast.unparse(node.func).rpartition(".")
            given = [ast.unparse(keyword) for keyword in node.keywords]
            rule = stated.get(name)
            # What ** holds is tested below.
            lacks = (
                rule and rule[0] in ("", owner) and not ({rule[1]} & {*given} or "**" in str(given))
            )
            if lacks or ast.unparse(node.func) in never or "allow_pickle" in str(given):
                found.append(f"{path.relative_to(REPO)}:{node.lineno}: {owner}.{name}")
    assert found == []


# Recipes and configs


@pytest.mark.parametrize("place", ["model", "data"])
@pytest.mark.parametrize("callable", ["os.mkdir", "os.system", "subprocess.Popen", "eval"])
def test_a_recipe_calls_nothing_but_tasks_data_and_networks(
    place: str, callable: str, best: Path, made: Path, tmp_path: Path
) -> None:
    args = {"path": str(made), "args": ["mkdir", str(made)], "command": f"mkdir {made}"}
    spec = {"class_path": callable, "init_args": args}
    path = changed(best, tmp_path, lambda recipe: recipe.update({place: spec}))
    with pytest.raises(ValueError, match=callable.rpartition(".")[2]):
        lit_foundry.load(path)
    with pytest.raises(UsageError):
        main(["validate", "--ckpt_path", str(path)])


@pytest.mark.parametrize(
    ("callable", "args"),
    [
        ("os.system", {"command": "mkdir {}"}),
        ("os.mkdir", {"path": "{}"}),
        ("subprocess.Popen", {"args": ["mkdir", "{}"]}),
        ("subprocess.call", {"args": ["mkdir", "{}"]}),
    ],
)
def test_a_transform_is_a_class_of_transforms(
    callable: str, args: dict[str, Any], made: Path
) -> None:
    filled = json.loads(json.dumps(args).replace("{}", str(made)))
    with pytest.raises(ValueError, match=f"class_path={callable}: no class of transforms"):
        lit_foundry.ImageFolder("images", transform={"class_path": callable, "init_args": filled})


WAYS: dict[str, Change] = {
    "task": lambda recipe: recipe["model"].update(class_path="outsider.Task"),
    "data": lambda recipe: recipe["data"].update(class_path="outsider.Data"),
    "backbone": lambda recipe: recipe["model"]["init_args"].update(
        backbone={"class_path": "outsider.Backbone"}
    ),
    "text": lambda recipe: recipe["model"]["init_args"].update(backbone="outsider.Backbone"),
    "file": lambda recipe: recipe["model"]["init_args"].update(backbone="outside.yaml"),
    "parts": lambda recipe: recipe["model"].update(class_path="here.outsider.Task"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_recipe_imports_no_module_of_the_current_folder(
    way: str, best: Path, made: Path, here: Path, tmp_path: Path
) -> None:
    for name in ("outsider.py", "here/outsider.py"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(f"import os\nos.mkdir({str(made)!r})\n", encoding="utf-8")
    (here / "outside.yaml").write_text("class_path: outsider.Backbone\n", encoding="utf-8")
    path = changed(best, tmp_path, WAYS[way])
    with pytest.raises(ValueError, match="outside"):
        lit_foundry.load(path)
    with pytest.raises(ValueError, match="outside"):
        main(["validate", "--ckpt_path", str(path)])
    assert "outsider" not in sys.modules


OWN = """
from lit_foundry import Classification, TextEncoder, TextFiles

class Own(Classification): pass
class Encoder(TextEncoder): pass
class Data(TextFiles): pass
"""


@pytest.fixture
def own(best: Path, here: Path, tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of a task of the user's own, whose module is not imported yet."""
    (here / "own_tasks.py").write_text(OWN, encoding="utf-8")
    yield changed(best, tmp_path, lambda r: r["model"].update(class_path="own_tasks.Own"))
    sys.modules.pop("own_tasks", None)


def test_a_task_of_ones_own_has_to_be_imported_or_named(own: Path) -> None:
    refuses(own, r"names own_tasks\.Own, and no module own_tasks was imported.*--model.*--import")


@pytest.mark.parametrize("word", ["--model=own_tasks.Own", "--config=own.yaml"])
def test_a_task_of_ones_own_is_named_on_the_command_line(word: str, own: Path, here: Path) -> None:
    write_config(here / "own.yaml", {"model": {"class_path": "own_tasks.Own"}})
    cli = main(["validate", "--ckpt_path", str(own), word])
    assert type(cli.model).__name__ == "Own"
    assert type(load_task(own)).__name__ == "Own"  # as it is imported now


@pytest.mark.usefixtures("own")
def test_networks_and_data_of_ones_own_are_named_too(best: Path, tmp_path: Path) -> None:
    def change(recipe: dict[str, Any]) -> None:
        recipe["model"]["init_args"]["backbone"]["class_path"] = "own_tasks.Encoder"
        recipe["data"]["class_path"] = "own_tasks.Data"

    words = ["validate", "--ckpt_path", str(changed(best, tmp_path, change))]
    with pytest.raises(CheckpointError, match=r"names own_tasks\.Encoder"):
        main(words)
    cli = main([*words, "--model.backbone=own_tasks.Encoder"])
    assert (type(cli.model.backbone).__name__, type(cli.data).__name__) == ("Encoder", "Data")
    assert cli.model.backbone.dim == 32  # with the arguments of the recipe


def test_a_module_is_imported_for_an_export(own: Path, tmp_path: Path) -> None:
    words = ["--ckpt_path", str(own), "--format", "safetensors", "--output", str(tmp_path / "out")]
    with pytest.raises(CheckpointError, match="No module named 'own_task'"):
        exporting.main([*words, "--import", "own_task"])
    exporting.main([*words, "--import", "own_tasks"])
    assert lit_foundry.load(tmp_path / "out").labels == ["neg", "pos"]


@pytest.mark.parametrize("text", ["{}", "model: {}", "trainer:\n  max_epochs: {}"])
def test_tags_of_yaml_build_nothing(text: str, made: Path, tmp_path: Path) -> None:
    tag = f"!!python/object/apply:os.mkdir [{str(made)!r}]"
    (tmp_path / "a.yaml").write_text(text.format(tag), encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.yaml"):
        main(["fit", "--config", str(tmp_path / "a.yaml")])


def test_tags_of_yaml_in_a_recipe_are_texts(best: Path, made: Path, tmp_path: Path) -> None:
    tag = f"!!python/object/apply:os.mkdir [{str(made)!r}]"
    path = changed(best, tmp_path, lambda r: r["data"]["init_args"].update(test=tag))
    assert load_data(path).sources["test"] == tag
    with pytest.raises(ValueError, match="not a table"):
        main(["test", "--ckpt_path", str(path)])


# Tokenizers, and the code that folders of transformers bring


@pytest.mark.parametrize("name", ["{}", "../made", "deep/made", "made", "evil.py", "config.json"])
def test_files_of_a_tokenizer_have_their_own_names(
    name: str, best: Path, made: Path, tmp_path: Path
) -> None:
    name = name.format(made)
    path = changed(best, tmp_path, lambda r: r["data_state"]["tokenizer"].update({name: "x"}))
    refuses(path, "A file of its tokenizer is called")


@pytest.mark.parametrize("name", ["../../secret.txt", "/etc/hostname", "model.safetensors"])
def test_an_export_names_no_other_files(name: str, best: Path, tmp_path: Path) -> None:
    output = exporting.export(best, "safetensors", tmp_path / "out")
    manifest = json.loads((output / "lit_foundry.json").read_text(encoding="utf-8"))
    manifest["data_state"]["tokenizer"] = [name]
    (output / "lit_foundry.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(CheckpointError, match="names files of no tokenizer"):
        lit_foundry.load(output)


@pytest.fixture
def answers_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input whose first line would allow to run code: a text to predict on."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))


def with_code(folder: Path, made: Path, **classes: str) -> Path:
    """Write code beside a folder's files, and a config and a tokenizer that ask for it."""
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(f"import os\nos.mkdir({str(made)!r})\n", encoding="utf-8")
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        said = json.dumps({"model_type": "unheard", "auto_map": classes, "architectures": ["Own"]})
        (folder / name).write_text(said, encoding="utf-8")
    return folder


@pytest.mark.usefixtures("answers_yes")
def test_code_of_a_pretrained_folder_is_never_run(made: Path, tmp_path: Path) -> None:
    classes = {"AutoConfig": "own.C", "AutoModel": "own.M", "AutoImageProcessor": "own.P"}
    folder = with_code(tmp_path / "own", made, **classes, AutoTokenizer=["own.T", "own.T"])
    with pytest.raises(ForeignCodeError, match="own brings code of its own"):
        load_tokenizer(str(folder))
    with pytest.raises(ForeignCodeError, match="own brings code of its own"):
        exported_logits(folder, "hf", ["input_ids"])
    for backbone in (TextEncoder, lit_foundry.ImageEncoder):
        with pytest.raises(ValueError, match=r"no architecture of transformers|auto_map"):
            backbone(str(folder))


@pytest.mark.usefixtures("answers_yes")
def test_code_beside_a_known_architecture_is_not_run_either(made: Path, tmp_path: Path) -> None:
    bert = tiny_config(tmp_path)["model"]["init_args"]["backbone"]["init_args"]["config"]
    source = TextEncoder(config=bert, vocab_size=50)
    source.encoder.save_pretrained(tmp_path)
    kinds = "AutoConfig", "AutoModel", "AutoModelForSequenceClassification", "AutoModelForMaskedLM"
    said = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    with_code(tmp_path, made)
    (tmp_path / "config.json").write_text(
        json.dumps(said | {"auto_map": {kind: f"own.{kind}" for kind in kinds}}), encoding="utf-8"
    )
    backbone = TextEncoder(str(tmp_path))
    assert "auto_map" not in backbone.recipe()["init_args"]["config"]
    with pytest.warns(UserWarning, match="no language head: a new one begins"):
        backbone.language_head()


@pytest.mark.usefixtures("answers_yes")
def test_code_that_a_checkpoints_tokenizer_names_is_never_run(best: Path, tmp_path: Path) -> None:
    said = json.dumps({"auto_map": {"AutoTokenizer": ["org/own--own.T", None]}})
    files = {"tokenizer_config.json": said}
    with pytest.raises(ForeignCodeError, match="tokenizer of this checkpoint"):
        tokenizer_from_files(files)
    path = changed(best, tmp_path, lambda r: r["data_state"].update(tokenizer=files))
    refuses(path, "tokenizer of this checkpoint or export brings code")


# Programs


class Sum(nn.Module):
    """Has a weight, a constant, and sizes that vary."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("one", torch.ones(3), persistent=False)

    def forward(self, *values: Tensor) -> Tensor:
        """Return (B, 2) numbers."""
        hidden = values[0].masked_fill(values[0] > 9, float("-inf")) + self.one
        return self.linear(torch.einsum("bi,bi->bi", hidden, hidden))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = {"values": ({0: torch.export.Dim.DYNAMIC},)}
    made = torch.export.export(Sum(), (torch.randn(4, 3),), dynamic_shapes=shapes)
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    torch.export.save(made, path)
    return path


def pickled(made: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": Attack(made)}, buffer)
    return buffer.getvalue()


def table(parts: dict[str, bytes], name: str, entry: str | None, **changes: Any) -> None:
    """Change an entry of a table of tensors, or add one."""
    said = json.loads(parts[name])
    weights = json.loads(parts[WEIGHTS])["config"]
    said["config"][entry or "x"] = weights["linear.weight"] | {"use_pickle": True} | changes
    parts[name] = json.dumps(said).encode()


def everywhere(part: Any, key: str, value: Any) -> None:
    """Set all values of a key."""
    if isinstance(part, dict):
        part |= {key: value} if key in part else {}
        part = list(part.values())
    if isinstance(part, list) and part != value:
        for inner in part:
            everywhere(inner, key, value)


def graph(key: str, value: Any) -> Callable[[dict[str, bytes], Path], None]:
    """Return an attack that sets a key all over the graph."""

    def attack(parts: dict[str, bytes], made: Path) -> None:
        said = json.loads(parts[MODEL])
        code = json.loads(json.dumps(value).replace("CODE", f"__import__('os').mkdir('{made}')"))
        everywhere(said, key, code)
        parts[MODEL] = json.dumps(said).encode()

    return attack


def opaque(parts: dict[str, bytes], made: Path) -> None:
    table(parts, CONSTANTS, None, path_name="opaque_obj_0")
    parts["data/constants/opaque_obj_0"] = pickle.dumps(Attack(made))


def weight(parts: dict[str, bytes], made: Path) -> None:
    table(parts, WEIGHTS, "linear.weight")
    parts["data/weights/weight_0"] = parts["data/weights/weight_1"] = pickled(made)


ENUM = '[1, {"type": "builtins.dict", "context": "{\\"__enum__\\": true}", "children_spec": []}]'
PROGRAMS: dict[str, Callable[[dict[str, bytes], Path], object]] = {
    "inputs": lambda parts, made: parts.update({INPUTS: pickled(made)}),
    "weight": weight,
    "constant": opaque,
    "older weights": lambda parts, made: parts.update({"data/weights/model.pt": pickled(made)}),
    "library": lambda parts, made: parts.update({"data/aotinductor/model/a.so": b"\x7fELF"}),
    "another program": lambda parts, made: parts.update({"models/other.json": parts[MODEL]}),
    "size": graph("expr_str", "CODE"),
    "attribute": graph("expr_str", "Integer.__subclasses__()"),
    "function": graph("expr_str", "breakpoint()"),
    "operator": graph("target", "torch.os.mkdir"),
    "file": graph("target", "torch.ops.aten.from_file.default"),
    "method": graph("target", "_operator.methodcaller"),
    "argument": graph("forward_arg_names", ["a=CODE"]),
    "name": graph("name", "a=CODE"),
    "enumeration": graph("in_spec", ENUM),
}


def rewritten(program: Path, path: Path, attack: Callable[..., object], made: Path) -> Path:
    """Write a program with other parts."""
    with zipfile.ZipFile(program) as old:
        root = old.namelist()[0].partition("/")[0]
        parts = {name.partition("/")[2]: old.read(name) for name in old.namelist()}
    attack(parts, made)
    with zipfile.ZipFile(path, "w") as new:
        for name, content in parts.items():
            new.writestr(f"{root}/{name}", content)
    return path


@pytest.mark.parametrize("attack", PROGRAMS)
def test_a_program_holds_tensors_and_operations_alone(
    attack: str, program: Path, made: Path, tmp_path: Path
) -> None:
    rewritten(program, tmp_path / "model.pt2", PROGRAMS[attack], made)
    with pytest.raises(CheckpointError, match=r"model\.pt2 is refused, as it holds more than"):
        exported_logits(tmp_path, "torch", ["values"])


def test_checks_of_a_program_that_are_python_are_left_out(
    program: Path, made: Path, tmp_path: Path
) -> None:
    path = rewritten(program, tmp_path / "model.pt2", graph("guards_code", ["CODE"]), made)
    logits = exported_logits(tmp_path, "torch", ["values"])
    values = torch.randn(5, 3)
    expected = torch.export.load(program).module()(values)
    torch.testing.assert_close(logits({"values": values}), expected)
    assert load_program(path).state_dict.keys() == {"linear.weight", "linear.bias"}


@pytest.mark.parametrize("place", ["../outside.bin", "{}/outside.bin", "link.bin"])
def test_weights_of_an_onnx_model_lie_in_its_folder(place: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "outside.bin").write_bytes(bytes(16))
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    kind, there = onnx.TensorProto.FLOAT, onnx.TensorProto.EXTERNAL
    weight = onnx.TensorProto(name="w", data_type=kind, dims=[4], data_location=there)
    weight.external_data.add(key="location", value=place.format(tmp_path))
    x, y = (onnx.helper.make_tensor_value_info(name, kind, [4]) for name in "xy")
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([add], "g", [x], [y], [weight])
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=r"model\.onnx cannot be opened \(.*[Ee]xternal"):
        exported_logits(folder, "onnx", ["x"])


# What is shown


def test_a_report_shows_texts_labels_and_names_as_they_are(tmp_path: Path) -> None:
    attack = "<script>alert(1)</script>"
    run = tmp_path / "<img src=x onerror=alert(1)>" / "1"
    (run / "predictions").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"x": attack}), encoding="utf-8")
    samples = {"id": [attack] * 4, "text": [attack] * 4, "tokens": [3] * 4}
    probs = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    target = np.array([1, 0, 0, 1])
    columns = {"prob": probs, "target": target}
    Predictions([attack, "b"], columns, samples).write(run / "predictions/test.parquet")
    report.main([str(run), "--output", str(tmp_path / "page")])
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert attack not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
