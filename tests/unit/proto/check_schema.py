"""Fails if a message type of a .proto file can contain itself: protobuf-c unpacks recursively without a limit.
usage: check_schema.py roost.proto"""
import re
import sys


def message_graph(text):
    """name -> set of the type names of its fields. Nested declarations are not used here and are refused."""
    text = re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.S))
    graph = {}
    for name, body in re.findall(r"\bmessage\s+(\w+)\s*\{([^{}]*)\}", text):
        graph[name] = set(re.findall(r"(?:repeated\s+|optional\s+)?([\w.]+)\s+\w+\s*=\s*\d+", body))
    declared = set(re.findall(r"\bmessage\s+(\w+)", text))
    if declared != set(graph):
        sys.exit(f"nested or unreadable messages: {sorted(declared ^ set(graph))}")
    return graph


def find_cycle(graph):
    def visit(name, path):
        if name in path:
            return path[path.index(name):] + [name]
        for field_type in graph.get(name, ()):
            cycle = visit(field_type.split(".")[-1], path + [name])
            if cycle:
                return cycle
        return None

    for name in graph:
        cycle = visit(name, [])
        if cycle:
            return cycle
    return None


def main():
    assert find_cycle(message_graph("message A { B b = 1; } message B { repeated A a = 1; }")), "the check itself is broken"
    graph = message_graph(open(sys.argv[1]).read())
    cycle = find_cycle(graph)
    if cycle:
        sys.exit(f"{sys.argv[1]}: recursive message type: " + " -> ".join(cycle))
    print(f"{len(graph)} messages, none recursive")


main()
