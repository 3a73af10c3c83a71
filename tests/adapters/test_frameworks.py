"""The adapters inside the real frameworks; each test skips where its framework is not installed."""

import asyncio
import dataclasses
import inspect
import json
import sys

import pytest

from headrank_pipeline import headrank, rank

QUERY = "how long does a flea live"
TEXTS = ["The dog sleeps in the sun.", "A flea can live up to a year.", "Paris is the capital of France."]


@pytest.fixture(scope="module")
def expected() -> list[tuple[int, float]]:
    """Index and score of every text, best first."""
    return [(one.index, one.score) for one in rank(QUERY, TEXTS, model="embedded")]


def needs(module: str, extra: str):
    return pytest.importorskip(module, reason=f"not installed: pip install 'headrank-pipeline[{extra}]'")


# ------------------------------------------------------------------------------------------------------------ LangChain


def test_langchain_documents_come_back_best_first_with_their_scores(expected):
    documents_module = needs("langchain_core.documents", "langchain")
    from headrank_pipeline.adapters.langchain import HeadRankCompressor

    documents = [
        documents_module.Document(page_content=text, metadata={"n": n}, id=str(n)) for n, text in enumerate(TEXTS)
    ]
    compressor = HeadRankCompressor(model="embedded")
    after = compressor.compress_documents(documents, QUERY)
    assert [(one.metadata["n"], one.metadata["relevance_score"]) for one in after] == expected
    assert after[0].id == "1"
    assert documents[1].metadata == {"n": 1}
    assert compressor.compress_documents([], QUERY) == []
    few = HeadRankCompressor(model=headrank("embedded"), top_n=1)
    assert asyncio.run(few.acompress_documents(documents, QUERY)) == after[:1]


def test_langchain_refuses_what_it_does_not_know():
    needs("langchain_core.documents", "langchain")
    from headrank_pipeline.adapters.langchain import HeadRankCompressor

    with pytest.raises(ValueError, match="top_k"):
        HeadRankCompressor(model="embedded", top_k=3)
    with pytest.raises(ValueError, match="top_n"):
        HeadRankCompressor(model="embedded", top_n=0)
    with pytest.raises(ValueError, match="did you mean 'passage_words'"):
        HeadRankCompressor(model="embedded", options={"passage_word": 3})
    with pytest.raises(TypeError, match="no scores of a first stage"):
        HeadRankCompressor(model="embedded", options={"first_stage_weight": 0.5})


def test_langchain_runs_it_inside_a_chain(expected):
    runnables = needs("langchain_core.runnables", "langchain")
    from langchain_core.documents import Document

    from headrank_pipeline.adapters.langchain import HeadRankCompressor

    compressor = HeadRankCompressor(model="embedded", top_n=2)
    retriever = runnables.RunnableLambda(lambda query: [Document(page_content=text) for text in TEXTS])
    both = runnables.RunnableParallel(documents=retriever, query=runnables.RunnablePassthrough())
    chain = both | runnables.RunnableLambda(lambda given: compressor.compress_documents(**given))
    assert [document.page_content for document in chain.invoke(QUERY)] == [TEXTS[index] for index, _ in expected[:2]]


def test_langchain_retrievers_compress_with_it(expected):
    needs("langchain_core.retrievers", "langchain")
    retrievers = pytest.importorskip(
        "langchain_classic.retrievers", reason="not installed: pip install langchain-classic"
    )
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever

    from headrank_pipeline.adapters.langchain import HeadRankCompressor

    class Everything(BaseRetriever):
        def _get_relevant_documents(self, query, *, run_manager):
            return [Document(page_content=text) for text in TEXTS]

    compressor = HeadRankCompressor(model="embedded", top_n=2)
    retriever = retrievers.ContextualCompressionRetriever(base_compressor=compressor, base_retriever=Everything())
    assert [document.page_content for document in retriever.invoke(QUERY)] == [
        TEXTS[index] for index, _ in expected[:2]
    ]


# ----------------------------------------------------------------------------------------------------------- LlamaIndex


def test_llama_index_nodes_come_back_best_first_with_their_scores(expected):
    schema = needs("llama_index.core.schema", "llama-index")
    from headrank_pipeline.adapters.llama_index import HeadRankPostprocessor

    nodes = [schema.NodeWithScore(node=schema.TextNode(text=text, id_=str(n))) for n, text in enumerate(TEXTS)]
    after = HeadRankPostprocessor(model="embedded").postprocess_nodes(nodes, query_str=QUERY)
    assert [(int(one.node.node_id), one.score) for one in after] == expected
    assert nodes[0].score is None
    few = HeadRankPostprocessor(model=headrank("embedded"), top_n=1)
    assert asyncio.run(few.apostprocess_nodes(nodes, query_str=QUERY)) == after[:1]
    with pytest.raises(ValueError, match="needs the query"):
        few.postprocess_nodes(nodes)


def test_llama_index_refuses_what_it_does_not_know_and_a_change_that_would_do_nothing():
    needs("llama_index.core.schema", "llama-index")
    from headrank_pipeline.adapters.llama_index import HeadRankPostprocessor

    with pytest.raises(ValueError, match="top_k"):
        HeadRankPostprocessor(model="embedded", top_k=3)
    with pytest.raises(TypeError, match="no scores of a first stage"):
        HeadRankPostprocessor(model="embedded", options={"first_stage_weight": 0.5})
    opened = HeadRankPostprocessor(model="embedded")
    opened.top_n = 1
    with pytest.raises(ValueError, match="model"):
        opened.model = "smollm2"


def test_llama_index_saves_it_and_reads_it_again():
    needs("llama_index.core.schema", "llama-index")
    from headrank_pipeline.adapters.llama_index import HeadRankPostprocessor

    saved = HeadRankPostprocessor(model="embedded", top_n=2, options={"device": "cpu"}).to_json()
    again = HeadRankPostprocessor.from_json(saved)
    assert (again.model, again.top_n, again.options) == ("embedded", 2, {"device": "cpu"})
    assert json.loads(saved)["class_name"] == "HeadRankPostprocessor"


def test_llama_index_reads_what_it_would_embed():
    schema = needs("llama_index.core.schema", "llama-index")
    from headrank_pipeline.adapters.llama_index import HeadRankPostprocessor

    metadata = {"topic": "how long a flea lives", "secret": "x"}
    node = schema.TextNode(text="Up to a year.", metadata=metadata, excluded_embed_metadata_keys=["secret"])
    nodes = [schema.NodeWithScore(node=one) for one in (node, schema.TextNode(text="Up to a year."))]
    scores = [one.score for one in HeadRankPostprocessor(model="embedded").postprocess_nodes(nodes, query_str=QUERY)]
    texts = ["topic: how long a flea lives\n\nUp to a year.", "Up to a year."]
    assert scores == [one.score for one in rank(QUERY, texts, model="embedded")]


# ------------------------------------------------------------------------------------------------------------- Haystack


def test_haystack_runs_it_in_a_pipeline_that_was_saved_and_read_again(expected):
    haystack = needs("haystack", "haystack")
    from headrank_pipeline.adapters.haystack import HeadRankRanker

    pipeline = haystack.Pipeline()
    pipeline.add_component("ranker", HeadRankRanker("embedded", top_k=2, options={"device": "cpu"}))
    again = haystack.Pipeline.loads(pipeline.dumps(), allowed_modules=["headrank_pipeline.adapters.haystack"])
    documents = [haystack.Document(content=text, meta={"n": n}) for n, text in enumerate(TEXTS)]
    after = again.run({"ranker": {"query": QUERY, "documents": documents}})["ranker"]["documents"]
    assert [(one.meta["n"], one.score) for one in after] == expected[:2]
    assert documents[1].score is None
    whole = again.run({"ranker": {"query": QUERY, "documents": documents, "top_k": 3}})["ranker"]["documents"]
    assert [(one.meta["n"], one.score) for one in whole] == expected


def test_haystack_names_what_it_cannot_read_or_save():
    haystack = needs("haystack", "haystack")
    from headrank_pipeline.adapters.haystack import HeadRankRanker

    ranker = HeadRankRanker(headrank("embedded"))
    assert ranker.run(QUERY, []) == {"documents": []}
    with pytest.raises(ValueError, match="document d1: no content to read"):
        ranker.run(QUERY, [dataclasses.replace(haystack.Document(content="x"), id="d1", content=None)])
    with pytest.raises(ValueError, match="only names and paths can be saved"):
        ranker.to_dict()
    with pytest.raises(ValueError, match="top_k 0: expected at least 1"):
        HeadRankRanker("embedded", top_k=0)
    with pytest.raises(TypeError, match="no scores of a first stage"):
        HeadRankRanker("embedded", options={"first_stage_weight": 0.5}).warm_up()
    assert set(inspect.signature(ranker.run).parameters) == {"query", "documents", "top_k"}


# ------------------------------------------------------------------------------------------------------------------ MCP


def test_an_mcp_client_lists_and_calls_the_tool(expected):
    fastmcp = needs("fastmcp", "mcp")
    from headrank_pipeline.adapters.mcp import rerank_server

    async def talk():
        async with fastmcp.Client(rerank_server(headrank("embedded"))) as client:
            (tool,) = await client.list_tools()
            answer = await client.call_tool("rerank", {"query": QUERY, "documents": TEXTS})
            few = await client.call_tool("rerank", {"query": QUERY, "documents": TEXTS, "top_n": 1})
            refused = await client.call_tool("rerank", {"query": " ", "documents": TEXTS}, raise_on_error=False)
            return tool, answer, few, refused

    tool, answer, few, refused = asyncio.run(talk())
    assert tool.name == "rerank"
    assert set(tool.inputSchema["required"]) == {"query", "documents"}
    assert [(one["index"], one["score"], one["text"]) for one in answer.structured_content["result"]] == [
        (index, score, TEXTS[index]) for index, score in expected
    ]
    assert len(few.structured_content["result"]) == 1
    assert refused.is_error
    assert refused.content[0].text.startswith("qid query: query text ' ' is empty")


def test_the_command_serves_the_tool_on_standard_input_and_output(expected):
    fastmcp = needs("fastmcp", "mcp")
    from fastmcp.client.transports import StdioTransport

    async def talk():
        command = StdioTransport(sys.executable, ["-m", "headrank_pipeline", "mcp", "--model", "embedded"])
        async with fastmcp.Client(command) as client:
            return await client.call_tool("rerank", {"query": QUERY, "documents": TEXTS})

    answer = asyncio.run(talk()).structured_content["result"]
    assert [one["index"] for one in answer] == [index for index, _ in expected]
