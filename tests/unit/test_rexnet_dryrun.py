"""The dry run: what it says of batch, length, schedule, model and memory, and what it cannot know."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

from jobs.contract import Exit
from jobs.errors import SpecError
from rexnet import dryrun
from rexnet.architecture import MODELS, blocks
from rexnet.cost import cost_of, memory_of
from rexnet.recipe import CONFIGS, Recipe, load_recipe, make_recipe

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MindSpore's own, at import
    from rexnet.model import create_model

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[2]


def section(text: str, title: str) -> str:
    """The lines below a title, up to the next empty one."""
    return text[text.index(f"\n{title}") :].partition("\n\n")[0]


@pytest.mark.parametrize("model", MODELS)
def test_parameters_by_formula_are_those_of_the_model(model: str) -> None:
    network = create_model(model, num_classes=7, image_size=32, seed=0)
    trainable = sum(parameter.size for parameter in network.trainable_params())
    cost = cost_of(model, num_classes=7, image_size=32)
    assert cost.trainable == trainable
    assert cost.statistics == sum(parameter.size for parameter in network.get_parameters()) - trainable


@pytest.mark.parametrize(
    ("model", "millions", "giga"),  # the authors' table, github.com/clovaai/rexnet
    [("rexnet_09", 4.1, 0.35), ("rexnet_10", 4.8, 0.40), ("rexnet_13", 7.6, 0.66), ("rexnet_15", 9.7, 0.88),
     ("rexnet_20", 16.4, 1.53)],
)  # fmt: skip
def test_parameters_and_multiply_adds_are_the_published_ones(model: str, millions: float, giga: float) -> None:
    cost = cost_of(model, num_classes=1000, image_size=224)
    assert cost.trainable / 1e6 == pytest.approx(millions, abs=0.05)
    assert cost.multiply_adds / 1e9 == pytest.approx(giga, abs=0.005)


@pytest.mark.parametrize("config", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_packaged_recipe_is_described(config: str) -> None:
    text = dryrun.describe(load_recipe(config), 2)
    for key in Recipe.model_fields:
        assert f" {key}: " in text


def test_card_on_fewer_devices_keeps_batch_and_schedule() -> None:
    texts = [dryrun.describe(load_recipe("rexnet_09"), devices) for devices in (8, 2)]
    assert "8 device(s) x 64 images x 1 accumulated = 512" in texts[0]
    assert "2 device(s) x 64 images x 4 accumulated = 512" in texts[1]
    for text in texts:
        assert "* lr: 0.5  (0.001)" in text and "  warmup_factor: 0\n" in text
        assert "1,281,167 (assumed: ImageNet-1K's; no data_dir is named), 143 left out" in text
        assert "steps an epoch: 2,502; in all 1,000,800 (400 epochs" in text
        rates = [line.rpartition(" ")[2] for line in section(text, "schedule").splitlines()[2:]]
        assert float(rates[0]) == pytest.approx(0.5 / 12510, rel=1e-5)  # 5 epochs of 2,502 steps to 0.5
        assert float(rates[1]) == 0.5
        assert float(rates[2]) == pytest.approx(0.25, rel=0.05)
        assert float(rates[3]) == pytest.approx(1e-6, rel=0.01)
        assert "amp_level O2: on Ascend only; a CPU computes in float32" in text


def test_unknown_data_set_is_said_not_guessed() -> None:
    text = dryrun.describe(make_recipe({"dataset": "folder", "num_classes": 10, "data_dir": "/none"}, "r"), 1)
    assert "unknown, there is no folder /none/train" in section(text, "length")
    assert "steps: unknown" in text and "assumed" not in text


def test_images_are_counted_where_the_folder_is(tmp_path: Path) -> None:
    for i in range(11):
        path = tmp_path / "train" / str(i % 2) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    values = {"data_dir": str(tmp_path), "num_classes": 2, "batch_size": 2, "epoch_size": 5, "warmup_epochs": 0}
    text = section(dryrun.describe(make_recipe(values, "r"), 2), "length")
    assert "images an epoch: 11 (in " in text and "3 left out" in text
    assert "steps an epoch: 2; in all 10 (5 epochs" in text
    text = section(dryrun.describe(make_recipe({**values, "num_samples": 8, "max_steps": 3}, "r"), 2), "length")
    assert "images an epoch: 8 (num_samples, of 11" in text and "in all 3 (1.5 epochs" in text and "max_steps" in text
    with pytest.raises(SpecError, match="batch_size: a global batch of 12"):
        dryrun.describe(make_recipe({**values, "batch_size": 12}, "r"), 1)


def test_scaled_rate_is_shown() -> None:
    recipe = load_recipe("rexnet_09", {"scale_lr": "True"})
    text = section(dryrun.describe(recipe, 2), "schedule")
    assert "lr is scaled by 0.25" in text and "lr 0.125" in text


def test_memory_follows_optimiser_ema_batch_and_precision() -> None:
    def memory(**values: object) -> dict[str, int]:
        made = memory_of(make_recipe({"batch_size": 8, **values}, "r"), accumulation=1, half=False)
        return {name: getattr(made, name) for name in ("parameters", "gradients", "optimiser", "ema", "activations")}

    cost = cost_of("rexnet_09", num_classes=1000, image_size=224)
    sgd, adam = memory(opt="sgd"), memory(opt="adamw", ema=True)
    assert sgd["parameters"] == 4 * (cost.trainable + cost.statistics)
    assert (sgd["optimiser"], adam["optimiser"]) == (4 * cost.trainable, 8 * cost.trainable)
    assert (sgd["ema"], adam["ema"]) == (0, adam["parameters"])
    assert memory(batch_size=16)["activations"] == 2 * sgd["activations"]
    halved = memory_of(make_recipe({"batch_size": 8}, "r"), accumulation=1, half=True)
    assert 2 * halved.activations == sgd["activations"]


def test_our_kernels_keep_four_arrays_of_each_block() -> None:
    """Counted here from the blocks' channels: expanded, filtered, projected and finished, in whole panels of eight."""
    strides, size, kept = {1, 3, 5, 11}, 16, 0  # blocks that halve the map; 32 px leave the stem as 16
    for i, block in enumerate(blocks(0.9)):
        wide, out = (-(-c // 8) * 8 for c in (block.before if i == 0 else 6 * block.before, block.after))
        kept += wide * size**2
        size //= 2 if i in strides else 1
        kept += wide * size**2 + 2 * out * size**2
    assert cost_of("rexnet_09", num_classes=10, image_size=32).fused_activations == kept + 1152 * size**2


def test_command_describes_without_mindspore() -> None:
    check = (
        "import sys; from rexnet.dryrun import main; code = main(sys.argv[1:]);"
        "assert not {'mindspore', 'ray', 'mlflow'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", check, "-c", "rexnet_20", "--devices", "8", "--dry-run", "--lr", "0.25"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "* lr: 0.25" in done.stdout and "16,366,620 parameters" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-c", "rexnet_09", "--devices", "3"], "batch_size: 64 on 3 devices"),
        (["-c", "rexnet_09", "--devices", "none"], "--devices 'none'"),
        (["-c", "rexnet_09", "--batch_siz", "3"], "'batch_siz' is unknown"),
        (["-c", "rexnet_09", "--batch_size", "many"], "--batch_size 'many'"),
        (["-c", "rexnet_09", "--model", "rexnet_11"], "did you mean 'rexnet_10'"),
    ],
)
def test_mistake_ends_with_64_and_one_sentence(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dryrun.main(arguments) == Exit.CONFIG
    printed = capsys.readouterr()
    assert named in printed.err and len(printed.err.strip().splitlines()) == 1 and printed.out == ""
