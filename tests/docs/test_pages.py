"""Every code block of README and docs is run, or says why not; and no command in them has a flag that does not exist.

``<!-- run -->`` before a block: it is run, all of one page in one folder, in their order.
``<!-- not run: why -->`` before a block, or ``<!-- blocks not run: why -->`` once in a page for all that say nothing:
it is not, and why.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import click
import pytest

import headrank_pipeline
from headrank_pipeline.attention.model_files import first_stage_weight
from headrank_pipeline.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
_BLOCK = re.compile(r"(?ms)(?:<!-- (?P<mark>.*?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$")
_COMMAND = re.compile(r"^\s*(?:\$ )?(headrank|make|pip|python|mkdocs|\.venv/bin/\S+) ", re.MULTILINE)
_OF_PAGE = re.compile(r"<!-- blocks not run: \w.* -->")


@dataclass(frozen=True)
class Block:
    language: str
    text: str
    mark: str

    @property
    def is_code(self) -> bool:
        return self.language in ("python", "bash", "sh", "shell") or bool(_COMMAND.search(self.text))


def blocks_of(text: str) -> list[Block]:
    return [Block(found["language"], found["text"], found["mark"] or "") for found in _BLOCK.finditer(text)]


def unmarked(text: str) -> list[str]:
    if _OF_PAGE.search(text):
        return []
    marked = re.compile(r"run|not run: \w.*")
    return [block.text for block in blocks_of(text) if block.is_code and not marked.fullmatch(block.mark)]


def commands_of(text: str) -> list[list[str]]:
    """The words of every ``headrank`` command in a block, continuation lines joined, comments gone."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        before_comment = re.split(r"\s#\s", line.strip())[0].replace("…", "X")
        if before_comment.startswith("headrank "):
            for command in re.split(r"\s(?:\||>|;|&&)\s", before_comment):
                if command.strip().startswith("headrank "):
                    found.append(shlex.split(re.sub(r"<\([^)]*\)?", "X", command))[1:])
    return found


def unknown_flags(words: list[str]) -> list[str]:
    """What a command of the documentation has that the command line does not know."""
    name = next((word for word in words if not word.startswith("-")), None)
    if name is None:
        return []
    command = main.get_command(click.Context(main), name)
    if command is None:
        return [name]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    known |= {"-h", "--help"}
    return [word for word in words[1:] if word.startswith("-") and word.partition("=")[0] not in known]


def unknown_benchmarks(words: list[str]) -> list[str]:
    """What a command names as a benchmark, by a bare name, that does not ship."""
    if words[:1] not in (["run"], ["benchmarks"]):
        return []
    named = takewhile(lambda word: not word.startswith("-"), words[1:])
    known = {path.stem for path in (ROOT / "pipelines").rglob("*.yaml")}
    return [word for word in named if re.fullmatch(r"[a-z][\w-]*", word) and word not in known]


def wrong_weights(words: list[str]) -> list[str]:
    """What a command mixes a packaged model in with, where that is not the weight that was chosen for the model."""
    named = dict(pairwise(words))
    model, weight = named.get("--model", ""), named.get("--first-stage-weight")
    if weight is None or model not in ("smollm2", "embedded") or float(weight) == first_stage_weight(model):
        return []
    return [f"{model} {weight}"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_is_run_or_says_why_not_and_every_flag_exists(page):
    text = page.read_text(encoding="utf-8")
    assert unmarked(text) == []
    wrong = {
        " ".join(words): flags
        for block in blocks_of(text)
        for words in commands_of(block.text)
        if (flags := unknown_flags(words) + unknown_benchmarks(words) + wrong_weights(words))
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if "<!-- run -->" in page.read_text(encoding="utf-8")],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_blocks_that_are_to_be_run_do_what_they_say(page, tmp_path):
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for number, block in enumerate(blocks_of(page.read_text(encoding="utf-8"))):
        if block.mark != "run":
            continue
        script = tmp_path / f"block-{number}"
        script.write_text(block.text, encoding="utf-8")
        command = [sys.executable] if block.language == "python" else ["bash", "-euo", "pipefail"]
        done = subprocess.run([*command, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(notebook, tmp_path):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(cell.get("outputs", []) == [] for cell in cells)  # what they print is not kept, so it cannot go stale
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_wrong_in_a_page_is_found():
    assert unmarked("```python\nprint(1)\n```\n") == ["print(1)\n"]
    assert unmarked("<!-- not run:  -->\n```\nheadrank doctor \n```\n") != []
    assert unmarked("<!-- not run: takes hours -->\n```\nheadrank doctor --x\n```\n") == []
    [words] = commands_of("headrank rerank --candidates a.jsonl \\\n  --modell x   # why\n")
    assert unknown_flags(words) == ["--modell"]
    assert unknown_flags(["rerun", "--x"]) == ["rerun"]
    assert unknown_benchmarks(["run", "scifact", "my.yaml", "beir-nq", "--suite", "main"]) == ["scifact"]
    assert wrong_weights(["rerank", "--model", "embedded", "--first-stage-weight", "0.2"]) == ["embedded 0.2"]


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (the extra 'docs')")
    pytest.importorskip("mkdocstrings_handlers.python", reason="mkdocstrings is not installed (the extra 'docs')")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Rerank" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


def test_the_reference_has_every_public_name():
    page = set(re.findall(r"\w+", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")))
    assert [name for name in headrank_pipeline.__all__ if name != "__version__" and name not in page] == []


def test_the_page_of_errors_quotes_what_the_package_says():
    told = " ".join(
        re.sub(r'"\s*\n\s*f?"', "", path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "headrank_pipeline").rglob("*.py"))
    )
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    quoted = [quote for head in re.findall(r"(?m)^\*\*(.*?)\*\*", page) for quote in re.findall(r"`(.*?)`", head)]
    assert len(quoted) > 3
    assert [quote for quote in quoted if quote not in told and quote != "headrank needs heads"] == []
    assert "{spec.system} needs heads" in told
