"""What nvcc makes of the kernels: PTX with the source line of each instruction, and what ptxas said of registers and memory."""
import os
import pathlib
import re
import subprocess

SOURCE = pathlib.Path(__file__).resolve().parents[3]
KERNELS = SOURCE / "kernels" / "cuda"
ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
NVCC = os.environ.get("ROOST_NVCC", "nvcc")
FLAGS = os.environ.get("ROOST_CUDA_FLAGS", "-fmad=false -prec-div=true -prec-sqrt=true -ftz=false").split()


def kernel_files():
    return sorted(re.findall(r"^ *(\w+)\.cu$", (KERNELS / "sources.cmake").read_text(), re.M))


def compile_source(source, architecture, out, flags=None, ptx=True):
    """PTX to `out`, or with ptx=False an object; returns what the compiler said."""
    flags = FLAGS if flags is None else flags
    mode = ["-ptx", "-lineinfo"] if ptx else ["-c", "-Xptxas=-v"]
    number = architecture.removeprefix("sm_")
    command = [NVCC, "-O2", "-std=c++17", f"-I{SOURCE}", *flags, f"-gencode=arch=compute_{number},code={'compute' if ptx else 'sm'}_{number}",
               *mode, str(source), "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stderr


class Instruction:
    def __init__(self, text, place):
        self.text, self.place = text, place        # place: (file, line), innermost of what was inlined
        self.name = text.split()[0] if not text.startswith("@") else text.split()[1]


class Entry:
    """One kernel of a PTX file. loops: ranges of instructions from a label to a branch back to it."""

    def __init__(self, symbol, head, body, files):
        self.symbol = symbol
        self.threads = int(re.search(r"\.maxntid (\d+)", head).group(1))
        self.local_bytes = sum(int(n) for n in re.findall(r"\.local .*\[(\d+)\];", body))
        self.instructions, labels, self.loops, place = [], {}, [], None
        for line in body.splitlines():
            line = line.split("//")[0].strip()
            label = re.match(r"(\$?\w+):$", line)
            location = re.match(r"\.loc\s+(\d+)\s+(\d+)", line)
            if label:
                labels[label.group(1)] = len(self.instructions)
            elif location:
                place = (files[int(location.group(1))], int(location.group(2)))
            elif re.match(r"(@!?%\w+\s+)?[a-z]", line):
                self.instructions.append(Instruction(line, place))
                back = re.search(r"\bbra(?:\.uni)?\s+(\$?\w+);", line)
                if back and back.group(1) in labels:
                    self.loops.append((labels[back.group(1)], len(self.instructions)))

    def matching(self, pattern, within=None):
        low, high = within or (0, len(self.instructions))
        return [i for i in self.instructions[low:high] if re.search(pattern, i.text)]

    def looped(self, pattern):
        return any(self.matching(pattern, loop) for loop in self.loops)

    def innermost(self, pattern):
        """The smallest loop that has the instruction."""
        return min((loop for loop in self.loops if self.matching(pattern, loop)), key=lambda loop: loop[1] - loop[0], default=None)


def read_ptx(path):
    text = pathlib.Path(path).read_text()
    files = {int(n): pathlib.Path(name) for n, name in re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]+)"', text, re.M)}
    entries = []
    for match in re.finditer(r"\.entry (\w+)\(", text):
        begin = text.index("\n{", match.end())
        entries.append(Entry(match.group(1), text[match.end():begin], text[begin:text.index("\n}", begin)], files))
    return text, entries


class Resources:
    def __init__(self, registers, stack, spilled):
        self.registers, self.stack, self.spilled = registers, stack, spilled


def read_report(text):
    """(symbol, architecture) -> Resources, of what ptxas -v said."""
    found = {}
    pattern = (r"Compiling entry function '(\w+)' for '(\w+)'\n(?:(?!Compiling).*\n)*?\s*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes "
               r"spill loads\n.*Used (\d+) registers")
    for symbol, architecture, stack, stores, loads, registers in re.findall(pattern, text):
        found[symbol, architecture] = Resources(int(registers), int(stack), int(stores) + int(loads))
    return found


def build_reports(build):
    """file -> what read_report says, of a build with the real kernels."""
    folder = pathlib.Path(build) / "kernels" / "cuda" / "CMakeFiles" / "roost_kernels_cuda.dir"
    return {path.name.removesuffix(".cu.o.ptxas"): read_report(path.read_text()) for path in sorted(folder.glob("*.cu.o.ptxas"))}
