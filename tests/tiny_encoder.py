"""A tiny seeded sentence encoder and a tiny impact index for tests: real classes and files, made in a second."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from headrank_pipeline.first_stage.jvm import anserini_jar, find_java

TEXT = "a flea can live up to year the dog sleeps spies and one cat without any naïve café done . ,"
WORDS = re.findall(r"\S+", TEXT)


def tiny_encoder(folder: Path) -> Path:
    """A seeded BERT of one layer with the files that sentence-transformers puts beside a model."""
    vocabulary = {token: place for place, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        initializer_range=1.0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "modules.json").write_text('[{"type": "sentence_transformers.models.Normalize"}]')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
    return folder


def tiny_impact_index(folder: Path) -> Path:
    """Three documents with weights, indexed by Anserini as its SPLADE indexes are."""
    weights = {"d1": {"flea": 3, "year": 2}, "d2": {"dog": 5}, "007": {"flea": 1, "spy": 4}}
    (folder / "corpus").mkdir(parents=True)
    lines = (json.dumps({"id": docid, "contents": "", "vector": vector}) + "\n" for docid, vector in weights.items())
    (folder / "corpus" / "part.jsonl").write_text("".join(lines))
    command = [str(find_java().home / "bin" / "java"), "-cp", str(anserini_jar()), "io.anserini.index.IndexCollection"]
    command += ["-collection", "JsonVectorCollection", "-generator", "DefaultLuceneDocumentGenerator", "-threads", "1"]
    command += ["-input", str(folder / "corpus"), "-index", str(folder / "index"), "-impact", "-pretokenized"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "index"
