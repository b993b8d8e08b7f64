"""What must hold of a graph whatever it computes."""

import onnx


def late_reads(graph: onnx.GraphProto) -> list[str]:
    """Nodes that read an input X but are not needed to make next_X: in place, they might read what replaced X."""
    makers = {output: node for node in graph.node for output in node.output}
    late = []
    for output in graph.output:
        if not output.name.startswith("next_"):
            continue
        state = output.name.removeprefix("next_")
        needed: set[str] = set()
        pending = [output.name]
        while pending:
            node = makers.get(pending.pop())
            if node is not None and node.name not in needed:
                needed.add(node.name)
                pending += read_by(node)
        late += [node.name for node in graph.node if state in read_by(node) and node.name not in needed]
    return late


def read_by(node: onnx.NodeProto) -> list[str]:
    """What a node reads, the graphs within it included."""
    within = [inner for graph in branches(node) for inner in graph.node]
    return [*node.input, *(name for inner in within for name in read_by(inner))]


def branches(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs within a node."""
    return [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]


def all_graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """A graph and those within it."""
    return [graph, *(found for node in graph.node for inner in branches(node) for found in all_graphs(inner))]
