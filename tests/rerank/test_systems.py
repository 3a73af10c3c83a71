"""Systems: specs are values that open to rerankers, and another distribution adds a system by an entry point."""

from __future__ import annotations

import importlib
import json
import logging
import pickle
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from chat_models import chat_model
from click.testing import CliRunner
from tiny_models import tiny_model

from headrank_pipeline.attention.heads import HeadSet
from headrank_pipeline.attention.recipe import PromptTemplate, ScoringRule
from headrank_pipeline.cli import main
from headrank_pipeline.pipeline import Reranker
from headrank_pipeline.records import Candidate, Query, Ranking
from headrank_pipeline.rerank.attention_reranker import EngineSettings
from headrank_pipeline.rerank.baselines.decoding import Decoding, Reasoning
from headrank_pipeline.rerank.baselines.endpoint import Connection
from headrank_pipeline.rerank.baselines.first_token import Identifiers
from headrank_pipeline.rerank.baselines.generation import ModelSettings
from headrank_pipeline.rerank.baselines.passage_text import PassageText
from headrank_pipeline.rerank.baselines.pointwise import PairText, qwen3_reranker
from headrank_pipeline.rerank.baselines.windows import Windowing
from headrank_pipeline.rerank.interpolation import interpolated
from headrank_pipeline.rerank.systems import (
    GROUP,
    OWN_SYSTEMS,
    SystemSpec,
    core,
    headrank,
    open_system,
    system_names,
)
from headrank_pipeline.trec import write_candidates

HEADS = HeadSet("two", ((1, 0), (2, 3)))
BIRDS = Ranking.from_scores(
    Query("q1", "a bird sings"),
    [Candidate("d1", 2.0, "the river runs"), Candidate("d2", 1.0, "a bird that sings at dawn")],
)

OVERLAP = """
from headrank_pipeline.options import read_settings, refuse_unknown
from headrank_pipeline.pipeline import Reranker
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    lower: bool = True

class Overlap(Reranker):
    def __init__(self, model, settings):
        self.model, self.settings = model, settings
    def rerank_batch(self, rankings):
        return [r.rescored([self.score(r.query.text, c.text) for c in r.candidates]) for r in rankings]
    def score(self, query, text):
        words = [set((t.lower() if self.settings.lower else t).split()) for t in (query, text)]
        return float(len(words[0] & words[1]))
    def describe(self):
        return {"system": "overlap", "model": self.model, "lower": self.settings.lower}

def open_overlap(spec):
    spec.refuse_heads()
    refuse_unknown(spec.system, spec.options, Settings)
    return Overlap(str(spec.model), read_settings(Settings, spec.system, spec.options))

def open_nothing(spec):
    return None
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a distribution with systems, as pip lays one out: a module and its dist-info on the path."""

    def install(entries: dict[str, str], name: str = "overlap-system") -> Path:
        site = tmp_path / name
        info = site / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (site / f"{name.replace('-', '_')}.py").write_text(OVERLAP)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "".join(f"{key} = {value}\n" for key, value in entries.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
        monkeypatch.syspath_prepend(site)
        importlib.invalidate_caches()
        return site

    return install


def test_spec_travels_by_pickle_and_opens_to_the_same_reranker(folder):
    spec = SystemSpec("headrank", folder, HEADS, {"device": "cpu", "passage_words": 3}, first_stage_weight=0.25)
    sent = pickle.loads(pickle.dumps(spec.open))()
    expected = interpolated(headrank(folder, HEADS, device="cpu", passage_words=3), 0.25)
    assert sent.describe() == expected.describe()
    assert sent.rerank(BIRDS).scores == expected.rerank(BIRDS).scores
    with pytest.raises(FrozenInstanceError):
        spec.model = "other"


def test_options_of_a_spec_are_a_copy():
    given = {"passage_words": 3}
    spec = SystemSpec("headrank", "any", options=given)
    given["passage_words"] = 4
    assert spec.options == {"passage_words": 3}


def test_open_system_is_the_function_of_the_system(folder):
    opened = open_system("core", folder, HEADS, device="cpu", support="passages", log_scores=False)
    assert opened.describe() == core(folder, HEADS, device="cpu", support="passages").describe()


def test_distribution_adds_a_system_by_an_entry_point(installed):
    installed({"overlap": "overlap_system:open_overlap"})
    assert system_names() == [*OWN_SYSTEMS, "overlap"]
    reranked = open_system("overlap", "none", lower=True).rerank(BIRDS)
    assert reranked.docids == ("d2", "d1")
    with pytest.raises(ValueError, match="overlap has no option 'lowr'; did you mean 'lower'"):
        open_system("overlap", "none", lowr=True)


@pytest.fixture
def package_log():
    package = logging.getLogger("headrank_pipeline")
    handlers, level = list(package.handlers), package.level
    yield
    package.handlers, package.level, package.propagate = handlers, level, True


@pytest.mark.usefixtures("package_log")
def test_command_line_reranks_with_another_distributions_system(installed, tmp_path):
    installed({"overlap": "overlap_system:open_overlap"})
    write_candidates(tmp_path / "candidates.jsonl", [BIRDS])
    command = ["rerank", "--candidates", str(tmp_path / "candidates.jsonl"), "--model", "none", "--system", "overlap"]
    command += ["--output", str(tmp_path / "run"), "--option", "lower=false"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in (tmp_path / "run" / "run.trec").read_text().splitlines()]
    assert [(line[2], line[5]) for line in lines] == [("d2", "overlap"), ("d1", "overlap")]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["identity"]["reranker"] == {"system": "overlap", "model": "none", "lower": False}


def test_name_that_two_distributions_or_we_use_is_refused(installed):
    installed({"overlap": "overlap_system:open_overlap"})
    installed({"overlap": "other_system:open_overlap", "icr": "other_system:open_overlap"}, "other-system")
    with pytest.raises(ValueError, match="'overlap' is defined more than once: other_system:open_overlap, overlap_s"):
        open_system("overlap", "none")
    with pytest.raises(ValueError, match=r"'icr' is defined more than once: headrank_pipeline.*, other_system:"):
        open_system("icr", "none")


def test_opener_that_returns_no_reranker_is_refused(installed):
    installed({"nothing": "overlap_system:open_nothing"})
    with pytest.raises(TypeError, match="system 'nothing': its opener returned NoneType, not a Reranker"):
        open_system("nothing", "none")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"system": "hedrank"}, "no system 'hedrank'; did you mean 'headrank'?"),
        ({"system": "zzz"}, "no system 'zzz'; systems: headrank, icr"),
        ({"model": "embeded"}, "model 'embeded': there is no such folder; did you mean 'embedded'?"),
        ({"model": "smol2"}, "model 'smol2': there is no such folder; did you mean 'smollm2'?"),
        ({"log_scores": True}, "log_scores says how first_stage_weight mixes"),
        ({"system": "rankgpt", "offline": True, "options": {"endpoint": "http://x/v1"}}, "opens a socket, which off"),
        ({"system": "core"}, "core needs heads; name a head set: .*'all', 'layers:10-13', or .*qrranker-qwen3-4b"),
        ({"system": "rankgpt", "heads": "all"}, "rankgpt reads no attention heads; leave heads out .got 'all'."),
        ({"system": "rankgpt", "options": {"strde": 2}}, "rankgpt has no option 'strde'; did you mean 'stride'?"),
        ({"options": {"passage_cache_limit": 1}}, "passage_cache_limit bounds a folder; name it as passage_cache"),
        ({"options": {"batch_tokens": "many"}}, "batch_tokens 'many': expected auto or a whole number"),
        ({"options": {"max_prompt_tokens": 0}}, "max_prompt_tokens 0: expected at least 1"),
        ({"options": {"passage_cache_memory": float("nan")}}, "passage_cache_memory nan: expected GiB"),
        ({"options": {"passage_cache_memory": -1}}, "passage_cache_memory -1.0: expected GiB"),
        ({"options": {"passage_cache": 5}}, "passage_cache 5: expected a folder or a PassageCache"),
    ],
)
def test_what_a_spec_cannot_be_is_refused(spec, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        SystemSpec(**{"system": "headrank", "model": "any", **spec}).open()


def test_every_field_of_prompt_and_rule_is_an_option(folder):
    names = {field.name for kind in (PromptTemplate, ScoringRule) for field in fields(kind)} - {"name", "families"}
    for name in names:
        with pytest.raises(ValueError) as error:
            SystemSpec("headrank", folder, HEADS, {name: object(), "foo": 1}).open()
        assert "no option 'foo'" in str(error.value)


def test_rerankers_say_what_they_are(folder, tmp_path):
    assert repr(headrank(folder, HEADS, device="cpu")) == f"<headrank: {folder}, 2 heads>"
    mixed = repr(interpolated(core(folder, HeadSet("one", ((1, 0),)), device="cpu"), 0.5))
    assert f"<core: {folder}, 1 head>" in mixed
    chat = chat_model(tmp_path)
    assert repr(qwen3_reranker(chat, device="cpu")) == f"<qwen3-reranker: {chat}>"
    endpoint = SystemSpec("rankgpt", "qwen3", options={"endpoint": "http://localhost:1/v1"}).open()
    assert isinstance(endpoint, Reranker)
    assert repr(endpoint) == "<rankgpt: qwen3>"


def test_systems_are_known_without_torch():
    code = "import sys; import headrank_pipeline.rerank.systems; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_documentation_lists_every_option():
    page = (Path(__file__).parents[2] / "docs" / "options.md").read_text()
    kinds = (PromptTemplate, ScoringRule, EngineSettings, Windowing, PassageText, Reasoning, Decoding, ModelSettings,
             Connection, Identifiers, PairText)  # fmt: skip
    names = {field.name for kind in kinds for field in fields(kind)} - {"name", "families"}
    assert [name for name in sorted(names | {"endpoint"}) if f"`{name}`" not in page] == []
