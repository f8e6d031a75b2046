"""Recorded trajectories: what a recorder keeps equals the states it saw; the file beside a result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from config.cli import compose_config
from config.run import check
from data.tokenizers import get_tokenizer
from diffusion.noise import get_schedule
from diffusion.randomness import row_keys
from samplers import KeyedDraws, SamplerSettings, Samples, get_sampler, sampler_names
from samplers.base import State
from samplers.trajectory import Recorder, Trajectory
from tasks.trajectories import Trajectories, pieces
from tests.test_algo import build
from tests.test_training import LENGTH, run
from tests.worlds import NoisyDenoiser, NoisyWorld

NAMES = sampler_names()
WORLD = NoisyWorld()
M = WORLD.mask_id


def sample(name: str, xt: Tensor, *hooks: Recorder, steps: int = 6) -> tuple[Samples, list[State]]:
    """Samples of ``WORLD`` from ``xt`` (B, L), and the states: the first one, then that after each step."""
    denoiser, rows, states = NoisyDenoiser(WORLD), torch.arange(len(xt)), []

    def watch(step: int, before: State, after: State) -> None:
        states.extend([after] if states else [before, after])
        for hook in hooks:
            hook(step, before, after)

    mask_seeds = denoiser.draw_seeds(row_keys(0, 1, 0, rows), WORLD.length)
    sampler = get_sampler(name)(
        denoiser, get_schedule("log-linear", 1e-3), M, SamplerSettings(num_steps=steps)
    )
    return sampler.sample(xt, 1.0, mask_seeds, KeyedDraws(row_keys(0, 2, 0, rows)), on_step=watch), states


@pytest.mark.parametrize("name", NAMES)
def test_a_recorder_keeps_every_state(name: str) -> None:
    xt = torch.tensor([[M, M, M], [M, 1, M], [0, M, 2], [2, 0, 1]] * 3)
    recorder = Recorder(7, M)
    samples, states = sample(name, xt, recorder)
    assert len(recorder.trajectories) == 7 and recorder.num_steps == len(states) - 1
    resets = 0
    for row, way in enumerate(recorder.trajectories):
        changes = {change.step: change for change in way.changes}
        ids = list(way.start)
        assert ids == xt[row].tolist() and way.end() == samples.tokens[row].tolist()
        for step, (before, after) in enumerate(zip(states[:-1], states[1:], strict=True), 1):
            renewed = (
                (before.mask_seeds[row] != after.mask_seeds[row]) & (after.x[row] == M) & (before.x[row] == M)
            )
            change = changes.pop(step, None)
            if change is not None:
                for position, token in zip(change.positions, change.ids, strict=True):
                    ids[position] = token
                assert change.t == pytest.approx(float(after.t[row]), abs=1e-6)
            assert ids == after.x[row].tolist()  # nothing else was written
            assert (change.reset if change else []) == renewed.nonzero().squeeze(-1).tolist()
            resets += int(renewed.sum())
        assert not changes
    assert recorder.trajectories[3].changes == []  # nothing to write in row 3
    assert resets == 0 if name == "coupled" else resets > 3  # noise that decides the draw is never renewed


def test_recording_changes_nothing_and_stays_small() -> None:
    xt = torch.full((4, WORLD.length), M)
    assert torch.equal(sample("ancestral", xt)[0].tokens, sample("ancestral", xt, Recorder(2, M))[0].tokens)
    way = Trajectory([M, 0, M, M], [])
    before = State(torch.tensor([way.start]), torch.ones(1), torch.zeros(1, 4).long())
    idle = Recorder(5, M)
    for step in range(1000):
        idle(step, before, before)
    assert idle.trajectories == [way] and idle.num_steps == 1000


def test_a_cut_trajectory_ends_as_the_cut_text() -> None:
    recorder = Recorder(4, M)
    sample("first_hitting", torch.full((4, 3), M), recorder)
    for way in recorder.trajectories:
        part = way.cut(2)
        assert part.end() == way.end()[:2] and len(part.start) == 2
        assert all(p < 2 for c in part.changes for p in (*c.positions, *c.reset))
        assert all(c.positions or c.reset for c in part.changes)


def test_windows_that_slide_are_one_text() -> None:
    words = ["sampling.semi_ar=True", "sampling.stride_length=3", "sampling.num_strides=2"]
    module = build("algo=imdm", "sampling.record_trajectories=2", *words)
    ways = Trajectories(module, module.config, Path("unused.json"))
    recorder = ways.watch(0)
    samples = module.generator.sample(4, 4, batch_size=4, on_step=recorder)
    assert ways.watch(2) is None and recorder.num_steps == 12
    assert [way.end() for way in recorder.trajectories] == samples.tokens[:2].tolist()
    last = [change.step for change in recorder.trajectories[0].changes][-1]
    assert 8 < last <= 12 and set(recorder.trajectories[0].start) == {module.mask_id}


# The mode -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trajectories")
    words = ("trainer.max_steps=1", "trainer.limit_val_batches=0")
    run(folder, "algo=imdm", *words, f"checkpointing.save_dir={folder}/run")
    return folder / "run" / "checkpoints" / "last.ckpt"


def evaluated(checkpoint: Path, path: Path, *words: str) -> dict:
    mode = ("mode=sample_eval", f"eval.checkpoint_path={checkpoint}", f"eval.generated_samples_path={path}")
    sizes = ("loader.eval_batch_size=3", "sampling.num_sample_batches=2", "sampling.steps=1,4")
    return run(checkpoint.parent, "algo=imdm", *mode, *sizes, *words)


def test_the_file_beside_the_result_tells_how_its_texts_came_about(checkpoint: Path, tmp_path: Path) -> None:
    result = evaluated(checkpoint, tmp_path / "s.json", "sampling.record_trajectories=5")
    plain = evaluated(checkpoint, tmp_path / "plain.json")
    found = json.loads((tmp_path / "s.trajectories.json").read_text())
    assert [run["trajectories"] for run in result["runs"]] == ["s.trajectories.json"] * 2
    assert [run["steps"] for run in found["runs"]] == [run["num_steps"] for run in found["runs"]] == [1, 4]
    for run_, recorded, same in zip(result["runs"], found["runs"], plain["runs"], strict=True):
        assert run_["generated_seqs"] == same["generated_seqs"] and "trajectories" not in same
        assert len(recorded["samples"]) == 5 and recorded["predictor"] == run_["predictor"]
        for text, way in zip(run_["generated_seqs"], recorded["samples"], strict=False):
            ids = list(way["start"])
            assert len(ids) == LENGTH and set(ids) == {found["mask_id"]}
            for _, _, positions, tokens, _ in way["changes"]:
                for position, token in zip(positions, tokens, strict=True):
                    ids[position] = token
            assert "".join(found["pieces"][str(i)] for i in ids).strip() == text
    assert any(change[4] for way in found["runs"][1]["samples"] for change in way["changes"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.json", "s.json", "s.trajectories.json"]


def test_a_prompt_is_there_from_the_start(checkpoint: Path, tmp_path: Path) -> None:
    words = ("sampling.record_trajectories=1", "sampling.prompt=1 _ 3", "sampling.steps=2")
    result = evaluated(checkpoint, tmp_path / "s.json", *words)
    found = json.loads((tmp_path / result["trajectories"]).read_text())
    start, mask = found["runs"][0]["samples"][0]["start"], found["mask_id"]
    assert start == [1, mask, 3] + [mask] * (LENGTH - 3)
    written = [p for c in found["runs"][0]["samples"][0]["changes"] for p in c[2]]
    assert sorted(written) == [1, *range(3, LENGTH)]


def test_pieces_join_to_the_text() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from transformers import PreTrainedTokenizerFast

    words = {"[UNK]": 0, "a": 1, "foo": 2, "##ing": 3, "[SEP]": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    wordpiece = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]")
    assert pieces(wordpiece, [2, 3, 4]) == {2: " foo", 3: "ing", 4: " [SEP]"}
    text8 = get_tokenizer("text8")
    ids = text8("the end", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(text8, ids)[i] for i in ids) == "the end"


def test_where_nothing_is_sampled_it_is_told() -> None:
    cfg = compose_config(["debug=fast", "sampling.record_trajectories=2"], warn=False)
    told = " ".join(check(cfg))
    assert "sampling.record_trajectories has no effect in mode=train" in told
