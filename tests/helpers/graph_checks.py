"""What must hold of a graph whatever it computes."""

import onnx


def late_reads(graph: onnx.GraphProto) -> list[str]:
    """Nodes that read an input X but are not needed to make next_X: in place, they might read what replaced X."""
    makers = {output: node for node in graph.node for output in node.output}
    late = []
    for output in graph.output:
        state = output.name.removeprefix("next_")
        needed: set[str] = set()
        pending = [output.name]
        while pending:
            node = makers.get(pending.pop())
            if node is not None and node.name not in needed:
                needed.add(node.name)
                pending += node.input
        late += [node.name for node in graph.node if state in node.input and node.name not in needed]
    return late
