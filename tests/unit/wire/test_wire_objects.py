"""Objects and trees: the captured ones to the byte, and what is refused."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trellis_wire.objects import (
    MAX_HEAD_BYTES,
    MAX_TREE_DEPTH,
    ObjectError,
    ObjectSource,
    PartVerifier,
    Tree,
    check_head,
    encode_head,
    encode_object,
    object_id,
    parse_head,
    verify_object,
)
from trellis_wire.pb.edge import message_pb2
from wire_vectors import messages, objects


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_every_captured_object_reencodes_to_its_id() -> None:
    assert len(objects()) == 186
    for oid, content in objects().items():
        head = verify_object(oid, content)
        again = encode_object(head.type_name, head.children, content[head.head_length :])
        assert again == content
        assert object_id(again) == oid


def test_every_captured_tree_survives_both_protocols_and_fits_its_objects() -> None:
    heads = {oid: verify_object(oid, content) for oid, content in objects().items()}
    assert len(messages()) == 122
    for captured in messages():
        tree = Tree.from_edge(captured.tree)
        assert tree.object_id == captured.metadata.message_id
        assert tree.to_edge() == captured.tree
        assert Tree.from_appio(tree.to_appio()) == tree
        for oid, node in tree.nodes().items():
            check_head(node, heads[oid])
        assert set(tree.post_order()) <= set(heads)


@given(st.binary(max_size=300), st.integers(1, 64))
def test_parts_join_to_the_content_and_verify(body: bytes, size: int) -> None:
    source = ObjectSource(encode_head("ArrayChunk", (), len(body)), body)
    oid = object_id(source.content())
    parts = [bytes(part) for part in source.parts(size)]
    assert b"".join(parts) == source.content()
    assert all(len(part) == size for part in parts[:-1])
    verifier = PartVerifier(oid, source.size)
    for part in parts:
        verifier.feed(memoryview(part))
    assert verifier.finish() == verify_object(oid, source.content())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no head"),
        (b"ArrayChunk  3abc", "no head"),
        (b"ArrayChunk  4\0abc", "announces a body of 4 bytes and 3 follow"),
        (b"ArrayChunk  2\0abc", "announces a body of 2 bytes and 3 follow"),
        (b"ArrayChunk  +3\0abc", "not a type, child ids and a length"),
        (b"ArrayChunk  03\0abc", "not a type, child ids and a length"),
        (b"ArrayChunk 3\0abc", "not a type, child ids and a length"),
        (b"ArrayChunk   3\0abc", "not a type, child ids and a length"),
        (b"\xff\xfe  3\0abc", "not a type, child ids and a length"),
        (b"Virus  3\0abc", "type 'Virus' is unknown"),
        (b"Array zz 3\0abc", "not a type, child ids and a length"),
        (f"Array {'A' * 64} 3\0abc".encode(), "not a type, child ids and a length"),
        (f"Array {'a' * 64}, 3\0abc".encode(), "not a type, child ids and a length"),
        (f"ArrayChunk {'a' * 64} 3\0abc".encode(), "names children, which this type cannot have"),
        (b"a" * (MAX_HEAD_BYTES + 10) + b"\0", "no head"),
    ],
)
def test_malformed_objects_are_refused_whole_and_in_parts(content: bytes, says: str) -> None:
    oid = object_id(content)
    with pytest.raises(ObjectError, match=says.replace("+", r"\+")):
        verify_object(oid, content)
    for view in (bytearray(content), memoryview(content)):
        with pytest.raises(ObjectError):
            parse_head(view, len(content))
    verifier = PartVerifier(oid, len(content))

    def send() -> None:
        for start in range(0, len(content), 1 << 20):
            verifier.feed(content[start : start + (1 << 20)])
        verifier.finish()

    with pytest.raises(ObjectError):
        send()


def test_another_hash_too_many_and_too_few_bytes_are_refused() -> None:
    content = encode_object("ArrayChunk", (), b"abc")
    with pytest.raises(ObjectError, match="has the hash"):
        verify_object(sha("other"), content)
    wrong = PartVerifier(sha("other"), len(content))
    wrong.feed(content)
    with pytest.raises(ObjectError, match="has the hash"):
        wrong.finish()
    large = PartVerifier(object_id(content), len(content))
    large.feed(content)
    with pytest.raises(ObjectError, match="is larger than"):
        large.feed(b"x")
    small = PartVerifier(object_id(content), len(content))
    small.feed(content[:-1])
    with pytest.raises(ObjectError, match="ended after"):
        small.finish()
    assert small.head is not None  # known as soon as its divider is there


def trees() -> st.SearchStrategy[Tree]:
    """Trees whose nodes' ids are made of their children, as in reality, so that repetitions agree."""

    def node(children: list[Tree]) -> Tree:
        return Tree(sha("/".join(child.object_id for child in children)), tuple(children))

    leaves = st.sampled_from([Tree(sha(name)) for name in "abc"])
    return st.recursive(leaves, lambda below: st.lists(below, max_size=4).map(node), max_leaves=20).filter(
        lambda tree: _depth(tree) <= MAX_TREE_DEPTH
    )


def _depth(tree: Tree) -> int:
    return 1 + max(map(_depth, tree.children), default=0)


@given(trees())
def test_post_order_lists_each_object_once_after_its_children(tree: Tree) -> None:
    order = tree.post_order()
    assert len(order) == len(set(order))
    assert order[-1] == tree.object_id
    place = {oid: index for index, oid in enumerate(order)}
    for oid, node in tree.nodes().items():
        assert all(place[child.object_id] < place[oid] for child in node.children)
    assert set(order) == set(tree.nodes())
    assert Tree.from_edge(tree.to_edge()) == tree


def edge_tree(object_id: str, *children: message_pb2.ObjectTree) -> message_pb2.ObjectTree:
    return message_pb2.ObjectTree(object_id=object_id, children=children)


def test_cyclic_deep_large_malformed_and_contradictory_trees_are_refused() -> None:
    a, b, c = sha("a"), sha("b"), sha("c")
    with pytest.raises(ObjectError, match="cyclic"):
        Tree.from_edge(edge_tree(a, edge_tree(b, edge_tree(a))))
    with pytest.raises(ObjectError, match="different children in two places"):
        Tree.from_edge(edge_tree(a, edge_tree(b, edge_tree(c)), edge_tree(b)))
    for bad in ("", "a", a.upper(), a + "0", "../" + a[3:]):
        with pytest.raises(ObjectError, match="64 lowercase hex"):
            Tree.from_edge(edge_tree(a, edge_tree(bad)))
    deep = edge_tree(sha("leaf"))
    for level in range(MAX_TREE_DEPTH - 1):
        deep = edge_tree(sha(str(level)), deep)
    assert _depth(Tree.from_edge(deep)) == MAX_TREE_DEPTH
    with pytest.raises(ObjectError, match="deeper than"):
        Tree.from_edge(edge_tree(a, deep))


def test_a_tree_of_too_many_nodes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trellis_wire.objects.MAX_TREE_NODES", 10)
    Tree.from_edge(edge_tree(sha("a"), *(edge_tree(sha("b")) for _ in range(9))))
    with pytest.raises(ObjectError, match="more than 10 nodes"):
        Tree.from_edge(edge_tree(sha("a"), *(edge_tree(sha("b")) for _ in range(10))))


def test_a_head_with_other_children_than_the_tree_is_refused() -> None:
    child = encode_object("ArrayChunk", (), b"x")
    parent = encode_object("Array", (object_id(child),), b"{}")
    head = parse_head(parent, len(parent))
    check_head(Tree(object_id(parent), (Tree(object_id(child)),)), head)
    for children in ((), (Tree(sha("other")),), (Tree(object_id(child)), Tree(object_id(child)))):
        with pytest.raises(ObjectError, match="other children"):
            check_head(Tree(object_id(parent), children), head)
