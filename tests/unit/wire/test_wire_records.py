"""Records to objects and back: worked ids, round trips, and every malformed object refused."""

import io
import json
import math
import struct
import time
import tracemalloc
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trellis_wire.messages import MessageError, Metadata
from trellis_wire.objects import Buffer, ObjectError, Tree, encode_object, object_id, verify_object
from trellis_wire.pb.edge import records_pb2
from trellis_wire.records import (
    Array,
    ArrayRecord,
    Bundle,
    ConfigRecord,
    MetricRecord,
    Record,
    deflate,
    deflate_message,
    inflate,
    inflate_message,
    metric_records,
)
from wire_vectors import messages, objects


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def packed(array: Any) -> Array:
    return Array(str(array.dtype), array.shape, npy(array))


def contents(bundle: Bundle) -> dict[str, bytes]:
    return {oid: source.content() for oid, source in bundle.objects.items()}


def metadata(run: int, destination: int, created_at: float, src_task_id: int | None = None) -> Metadata:
    return Metadata(run, "", 1, destination, "", "", 43200.0, "train", created_at, src_task_id)


WORKED: dict[str, Record] = {
    "arrays": ArrayRecord({"0": packed(np.zeros((4, 3), np.float32)), "1": packed(np.ones(3))}),
    "config": ConfigRecord({"server-round": 1}),
}


def test_worked_ids_of_the_wire_specification() -> None:
    bundle = deflate(WORKED)
    config = bundle.tree.children[1].object_id
    assert bundle.objects[config].content().endswith(bytes.fromhex("0a120a0c7365727665722d726f756e6412021002"))
    assert (config[:8], config[-4:]) == ("534ed7c5", "7232")
    assert (bundle.tree.object_id[:8], bundle.tree.object_id[-4:]) == ("eb0b92f5", "0ae9")
    older = deflate_message(metadata(6344919671714899802, 18165278796635509119, 1795518150.890419), WORKED)
    assert older.tree.object_id == "569733d35be34bb8b97e1bc3d7a8c118a04e470b88d32b9daa397103524b7231"
    newer = deflate_message(
        metadata(11104535608176796094, 9673817507723408151, 1795518415.104169, 6191338243037738466), WORKED
    )
    assert newer.tree.object_id == "2cbfb9bcda58b8a1ffa9906ac9fafded0ab8fe36ebc19b563a8a8f9d43eae7de"


def test_captured_messages_inflate_and_deflate_to_the_same_objects() -> None:
    for captured in messages():
        tree = Tree.from_edge(captured.tree)
        meta, error, records = inflate_message(tree, objects().__getitem__)
        bundle = deflate_message(meta, records, error)
        assert bundle.tree == tree
        assert contents(bundle) == {oid: objects()[oid] for oid in tree.post_order()}
        found = metric_records(tree, objects().get)
        assert found == {key: record for key, record in (records or {}).items() if isinstance(record, MetricRecord)}


def exactly(value: object) -> object:
    """Distinguishes what == does not: types, NaN, the sign of zero."""
    if isinstance(value, float):
        return ("float", struct.pack("<d", value))
    if isinstance(value, list):
        return [exactly(entry) for entry in value]
    if isinstance(value, dict):
        return [(key, exactly(entry)) for key, entry in value.items()]
    if isinstance(value, MetricRecord | ConfigRecord | ArrayRecord):
        return (type(value).__name__, exactly(dict(value.items)))
    if isinstance(value, Array):
        return (value.dtype, value.shape, value.stype, bytes(value.data))
    return (type(value).__name__, value)


ints = st.one_of(st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, 2**63 - 1, 2**63, -(2**63), 2**64 - 1]))
signed, unsigned = st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1)
floats = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan]))
texts, blobs = st.text(max_size=20), st.binary(max_size=20)
number_lists = st.one_of(*(st.lists(kind, min_size=1, max_size=4) for kind in (signed, unsigned, floats)))
keys = st.text(max_size=12)
metrics: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    keys, st.one_of(ints, floats, number_lists, st.just([])), max_size=5
)
configs: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    keys,
    st.one_of(
        st.booleans(), ints, floats, texts, blobs, number_lists, *(st.lists(k, max_size=3) for k in (st.booleans(),)),
        *(st.lists(kind, min_size=1, max_size=3) for kind in (texts, blobs)),
    ),
    max_size=6,
)  # fmt: skip
shapes = st.sampled_from([(), (0,), (1,), (7,), (2, 3), (3, 0, 2), (2, 1, 2, 2)])
dtypes = st.sampled_from(["float32", "float64", "int8", "uint64", "bool", "complex64", "<U3", "S4", ">i4", "float16"])


@st.composite
def arrays(draw: st.DrawFn) -> Array:
    shape, dtype = draw(shapes), np.dtype(draw(dtypes))
    count = int(np.prod(shape)) * dtype.itemsize
    data = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), np.uint8)
    if dtype.kind in "U" or dtype.kind == "b":
        return packed(np.zeros(shape, dtype))
    return packed(data.view(dtype).reshape(shape) if count else np.zeros(shape, dtype))


record = st.one_of(
    metrics.map(MetricRecord), configs.map(ConfigRecord), st.dictionaries(keys, arrays(), max_size=3).map(ArrayRecord)
)
record_dicts = st.dictionaries(keys, record, max_size=4)


@settings(max_examples=150, deadline=None)
@given(record_dicts, st.sampled_from([1, 16, 64, 1000, 5 << 20]))
def test_any_records_survive_with_order_types_and_bits(records: dict[str, Record], chunk_size: int) -> None:
    bundle = deflate(records, chunk_size=chunk_size)
    stored = contents(bundle)
    assert set(bundle.tree.post_order()) == set(stored)
    for oid, content in stored.items():
        verify_object(oid, content)
    again = inflate(bundle.tree, stored.__getitem__)
    assert exactly(again) == exactly(records)
    assert deflate(again, chunk_size=chunk_size).tree == bundle.tree


def test_repeated_chunks_and_records_are_stored_once_and_come_back_in_place() -> None:
    data = npy(np.zeros(4096, np.uint8))
    array = Array("uint8", (4096,), data)
    bundle = deflate(
        {"a": ArrayRecord({"x": array, "y": array}), "b": ArrayRecord({"x": array, "y": array})}, chunk_size=128
    )
    assert len(bundle.tree.children) == 1
    assert len(bundle.objects) == 1 + 1 + 1 + 2  # dict, record, array, header and zeros
    again = inflate(bundle.tree, contents(bundle).__getitem__)
    assert exactly(again["b"]) == exactly(ArrayRecord({"x": array, "y": array}))


def test_an_array_without_data_and_one_of_an_unknown_kind_pass() -> None:
    records = {"a": ArrayRecord({"empty": Array("float32", (0,), b""), "own": Array("any", (1,), b"\x80\x04", "mine")})}
    bundle = deflate(records)
    assert exactly(inflate(bundle.tree, contents(bundle).__getitem__)) == exactly(records)


def test_errors_and_empty_records_travel() -> None:
    failed = deflate_message(metadata(1, 2, 1795518150.0), None, MessageError(2, "no"))
    meta, error, records = inflate_message(failed.tree, contents(failed).__getitem__)
    assert (meta.message_id, error, records) == (failed.tree.object_id, MessageError(2, "no"), None)
    empty = deflate_message(metadata(1, 2, 1795518150.0), {})
    assert inflate_message(empty.tree, contents(empty).__getitem__)[2] == {}


# What stock MetricRecord and ConfigRecord of 1.20, 1.24 and 1.41 accept, and the ids they give {"k": value}.
METRICS: list[tuple[Any, str]] = [
    (1, "07855e59"), (-5, "cddd2f82"), (2**63 - 1, "5db52adf"), (2**63, "49b76320"), (2**64 - 1, "1ff021f7"),
    (-(2**63), "3bc5c7de"), (1.5, "f31e263e"), (-0.0, "63e2330a"), (math.nan, "9543b01d"), (math.inf, "2147fda3"),
    ([], "adcdce76"), ([1, 2], "732fe999"), ([1, 2**63], "3e8cf33e"), ([1, True], "4fa0f0e5"),
]  # fmt: skip
CONFIGS: list[tuple[Any, str]] = [
    (True, "603a8352"), (False, "9222600b"), (1, "e324d05c"), (2**63, "5925600a"), (1.5, "05da0b03"), ("", "5380ec68"),
    ("é", "93a8632e"), (b"", "955e76b9"), (b"\x00\xff", "d842d36e"), ([], "022fb3ca"), ([1, 2], "c2b48ae8"),
    ([1, 2**64 - 1], "2cc31a73"), ([1.5], "67d200a1"), (["a", ""], "9ee75af1"), ([b"a", b""], "904c4269"),
    ([True, False], "2a903b14"), ([1, True], "aa7dba45"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("record", "begins"),
    [*((MetricRecord({"k": v}), i) for v, i in METRICS), *((ConfigRecord({"k": v}), i) for v, i in CONFIGS)],
    ids=str,
)
def test_single_values_have_the_ids_that_stock_gives_them(record: Record, begins: str) -> None:
    assert deflate({"r": record}).tree.children[0].object_id.startswith(begins)


NO_METRICS: list[Any] = [True, 2**64, -(2**63) - 1, [-1, 2**63], [1, 2.0], [True, 1], "x", None]
NO_CONFIGS: list[Any] = [None, 2**64, [True, 1], ["a", b"a"], [[1]], {}, "\ud800"]


@pytest.mark.parametrize(
    "record",
    [*(MetricRecord({"k": value}) for value in NO_METRICS), *(ConfigRecord({"k": value}) for value in NO_CONFIGS)],
    ids=repr,
)
def test_values_that_stock_refuses_are_refused(record: Record) -> None:
    with pytest.raises(TypeError, match="'k' fits into no record"):
        deflate({"r": record})


# ---- hostile objects ------------------------------------------------------------------------------------------------


class Store(dict[str, bytes]):
    """Objects made by hand, and trees over them."""

    def put(self, type_name: str, body: bytes | str | dict[str, Any], *children: Tree) -> Tree:
        if isinstance(body, dict):
            body = json.dumps(body)
        data = body.encode() if isinstance(body, str) else body
        content = encode_object(type_name, [child.object_id for child in children], data)
        self[object_id(content)] = content
        return Tree(object_id(content), children)

    def array(self, data: bytes, **changes: Any) -> Tree:
        chunk = self.put("ArrayChunk", data)
        body = {"dtype": "float64", "shape": [1], "stype": "numpy.ndarray", "arraychunk_ids": [0]}
        return self.put("Array", {**body, **changes}, chunk)

    def record_dict(self, child: Tree, key: str = "r") -> Tree:
        return self.put("RecordDict", {key: child.object_id}, child)

    def arrays(self, array: Tree) -> Tree:
        return self.record_dict(self.put("ArrayRecord", {"w": array.object_id}, array))


def refuse(store: Store, tree: Tree, says: str) -> None:
    with pytest.raises(ObjectError, match=says) as caught:
        inflate(tree, store.__getitem__)
    assert str(caught.value).endswith(".")


def object_npy(descr: object, version: int = 1) -> bytes:
    header = (repr({"descr": descr, "fortran_order": False, "shape": (1,)}) + " \n").encode("latin-1")
    width = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(width, len(header)) + header + b"\x80\x04N."


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize(
    "descr", ["|O", "O", "<O8", "=O", [("a", "<f8"), ("b", "|O")], [("a", [("b", "|O")])], [("a", ("|O", (2,)))]]
)
def test_pickled_arrays_are_refused(descr: object, version: int) -> None:
    store = Store()
    refuse(store, store.arrays(store.array(object_npy(descr, version))), "pickled Python objects")


def test_what_numpy_itself_pickles_is_refused() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    store = Store()
    refuse(store, store.arrays(store.array(buffer.getvalue())), "pickled Python objects")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(2, [("Offset", "<f8"), ("O", "<i4", (2,))]),
        np.array(["O", "no objects"]),
        np.asfortranarray(np.zeros((2, 2))),
        np.zeros(1, "datetime64[ns]"),
        np.zeros((2,), "V6"),
    ],
    ids=str,
)
def test_plain_and_structured_arrays_pass(array: Any) -> None:
    bundle = deflate({"r": ArrayRecord({"w": packed(array)})})
    inflate(bundle.tree, contents(bundle).__getitem__)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04N.",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00v\x00{}",
        b"\x93NUMPY\x01\x00\x02\x00{}",
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
        b"\x93NUMPY\x01\x00\x20\x00" + b"{'descr': __import__('os').abort()}",
        b"\x93NUMPY\x01\x00\x0b\x00{'descr':5}",
        b"\x93NUMPY\x01\x00\x0e\x00{'descr':None}",
    ],
)
def test_broken_npy_headers_are_refused(data: bytes) -> None:
    store = Store()
    refuse(store, store.arrays(store.array(data)), "NPY")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dtype": 5}, "lacks dtype"),
        ({"stype": None}, "lacks dtype"),
        ({"shape": "1"}, "lacks dtype"),
        ({"shape": [-1]}, "lacks dtype"),
        ({"shape": [True]}, "lacks dtype"),
        ({"shape": [1.0]}, "lacks dtype"),
        ({"arraychunk_ids": [1]}, "does not use each of its chunks"),
        ({"arraychunk_ids": [-1]}, "lacks dtype"),
        ({"arraychunk_ids": []}, "does not use each of its chunks"),
        ({"arraychunk_ids": ["0"]}, "lacks dtype"),
    ],
)
def test_arrays_with_wrong_descriptions_are_refused(changes: dict[str, Any], says: str) -> None:
    store = Store()
    refuse(store, store.arrays(store.array(npy(np.zeros(1)), **changes)), says)


def test_objects_in_the_wrong_place_are_refused() -> None:
    store = Store()
    config = store.put("ConfigRecord", b"")
    array = store.array(npy(np.zeros(1)))
    refuse(store, config, "type ConfigRecord; send one of type RecordDict")
    refuse(store, store.record_dict(array), "holds the Array object")
    refuse(store, store.record_dict(store.record_dict(config)), "holds the RecordDict object")
    refuse(store, store.arrays(config), "type ConfigRecord; send one of type Array")
    body = {"dtype": "f", "shape": [1], "stype": "x", "arraychunk_ids": [0]}
    refuse(store, store.arrays(store.put("Array", body, config)), "type ConfigRecord; send one of type ArrayChunk")


def test_bodies_that_do_not_fit_their_head_or_tree_are_refused() -> None:
    store = Store()
    config, other = store.put("ConfigRecord", b""), store.put("MetricRecord", b"")
    refuse(store, store.put("RecordDict", "{}", config), "other children in its body")
    refuse(store, store.put("RecordDict", {"a": other.object_id}, config), "other children in its body")
    refuse(store, store.put("RecordDict", {"a": 5}, config), "other children in its body")
    refuse(store, store.put("RecordDict", {"a": [config.object_id]}, config), "other children in its body")
    refuse(
        store, store.put("RecordDict", {"a": config.object_id, "b": other.object_id}, other, config), "other children"
    )
    for text in ("[]", "{", "null", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", b"\xff"):
        refuse(store, store.put("RecordDict", text), "not (a )?JSON")
    good = store.record_dict(config)
    refuse(store, Tree(good.object_id, (other,)), "other children than its tree")
    refuse(store, Tree(good.object_id), "other children than its tree")
    chunked = store.arrays(store.array(npy(np.zeros(1))))
    record = chunked.children[0]
    bare = Tree(record.children[0].object_id)
    refuse(store, Tree(chunked.object_id, (Tree(record.object_id, (bare,)),)), "other children than its tree")


def test_broken_record_bodies_are_refused() -> None:
    store = Store()
    refuse(store, store.record_dict(store.put("ConfigRecord", b"\xff")), "cannot be read")
    refuse(store, store.record_dict(store.put("MetricRecord", b"\x0a\x05\x0a\x03\xff\xff\xff")), "cannot be read")
    empty = records_pb2.MetricRecord()
    empty.items.add(key="loss")
    refuse(store, store.record_dict(store.put("MetricRecord", empty.SerializeToString())), "'loss' has no value")


def test_a_message_with_another_tree_is_refused() -> None:
    bundle = deflate_message(metadata(1, 2, 1795518150.0), WORKED)
    stored = contents(bundle)
    for children in ((), (bundle.tree.children[0],) * 2, bundle.tree.children[0].children):
        with pytest.raises(ObjectError, match="other children"):
            inflate_message(Tree(bundle.tree.object_id, children), stored.__getitem__)


# ---- cost -----------------------------------------------------------------------------------------------------------


def test_a_large_array_is_cut_without_copying_it_and_assembled_chunk_by_chunk() -> None:
    size = 64 << 20
    data = bytearray(size)
    data[:128] = npy(np.zeros(size - 128, np.uint8))[:128]
    for start in range(128, size, 1 << 20):
        data[start : start + 8] = start.to_bytes(8, "little")  # so that no chunk repeats
    tracemalloc.start()
    bundle = deflate({"a": ArrayRecord({"w": Array("uint8", (size - 128,), data)})})
    cut = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()

    def count(chunks: Iterable[Buffer]) -> Buffer:
        seen = [len(chunk) for chunk in chunks]
        assert sum(seen) == size
        return data

    record = inflate(bundle.tree, lambda oid: bundle.objects[oid].content(), assemble=count)["a"]
    assembled = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(record, ArrayRecord)
    assert cut < 2 << 20
    assert assembled < 24 << 20  # a few chunks, not the array
    whole = inflate(bundle.tree, lambda oid: bundle.objects[oid].content())["a"]
    assert isinstance(whole, ArrayRecord)
    assert whole.items["w"].data == data


def test_a_small_message_takes_well_below_a_millisecond() -> None:
    meta = metadata(1, 2, 1795518150.0)
    records: dict[str, Record] = {
        "a": ArrayRecord({"w": packed(np.zeros(128))}),
        "c": ConfigRecord({"round": 1, "lr": 0.1}),
    }

    def once() -> float:
        start = time.perf_counter()
        bundle = deflate_message(meta, records)
        inflate_message(bundle.tree, contents(bundle).__getitem__)
        return time.perf_counter() - start

    assert min(once() for _ in range(200)) < 0.001
