"""Makes the CUDA build of torch, which is the only one PyPI has for Linux, importable without CUDA.

    python cpu_torch.py

The build's libraries name cuBLAS, cuDNN and others as needed, 3 GB of wheels, although nothing on
the CPU calls them. For each that is missing this compiles, with the system's gcc, a library of the
same name that defines the wanted symbols, under the wanted versions, and puts it where torch looks
first: its own lib folder. Each function returns 100, CUDA's "no device", so that torch finds no
card and goes on with the CPU.

Run it with the interpreter of the virtual environment that holds torch. It does nothing where torch
imports already (macOS, Windows, a machine with the CUDA wheels).
"""

import importlib.util
import pathlib
import re
import subprocess
import sys
import tempfile
from collections import defaultdict

# The CUDA toolkit's libraries; the driver's own (libcuda.so.1) is loaded by hand and may be absent.
TOOLKIT = re.compile(r"lib(cu(?!da\.)|nv|nccl)")

# Symbols without a version do not say which library they come from; their prefix does.
OWNERS = [
    ("pnccl", "libnccl"),
    ("cublasLt", "libcublasLt"),
    ("cusparseLt", "libcusparseLt"),
    ("cuFile", "libcufile"),
    ("nvshmem", "libnvshmem_host"),
    ("__cuda", "libcudart"),
    ("cuda", "libcudart"),
] + [
    (name, f"lib{name}")
    for name in ("cublas", "cudnn", "cufft", "cupti", "cusolver", "cusparse", "nccl", "nvrtc")
]


def readelf(*arguments):
    command = ["readelf", "--wide", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def needed_libraries(library):
    """The names of the shared libraries that `library` asks the loader for."""
    return re.findall(r"\(NEEDED\).*\[(.+)\]", readelf("--dynamic", library))


def version_owners(library):
    """Which library each symbol version that `library` refers to belongs to."""
    owners, file = {}, None
    for line in readelf("--version-info", library).splitlines():
        if found := re.search(r"Version: \d+\s+File: (\S+)", line):
            file = found[1]
        elif (found := re.search(r"Name: (\S+)\s+Flags", line)) and file:
            owners[found[1]] = file
    return owners


def undefined_symbols(library):
    """`(name, version or "", is data)` of every symbol that `library` must find elsewhere."""
    for line in readelf("--dyn-syms", library).splitlines():
        fields = line.split()
        if len(fields) < 8 or fields[6] != "UND" or fields[4] == "WEAK":
            continue
        name, _, version = fields[7].replace("@@", "@").partition("@")
        yield name, version, fields[3] == "OBJECT"


def wanted_stubs(libraries):
    """`{library: {version: {symbol: is data}}}` for every toolkit library that is named."""
    stubs = defaultdict(lambda: defaultdict(dict))
    for library in libraries:
        for name in filter(TOOLKIT.match, needed_libraries(library)):
            stubs[name]
    by_stem = {name.split(".so")[0]: name for name in stubs}
    for library in libraries:
        owners = version_owners(library)
        for symbol, version, is_data in undefined_symbols(library):
            owner = owners.get(version)
            if not version:
                stem = next((stem for prefix, stem in OWNERS if symbol.startswith(prefix)), None)
                owner = by_stem.get(stem)
            if owner in stubs:
                stubs[owner][version][symbol] = is_data
    return stubs


def definition(symbol, is_data):
    if is_data:
        return f"char {symbol}[4096];"
    if re.search(r"(Error|Status)(String|Name)$|LastErrorString$", symbol):
        return f'const char *{symbol}(void) {{ return "no CUDA"; }}'
    return f"long {symbol}(void) {{ return 100; }}"


def compile_stub(target, versions):
    """Writes the shared library `target` that defines `versions`, `{version: {symbol: is data}}`."""
    symbols = {name: data for wanted in versions.values() for name, data in wanted.items()}
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder, "stub.c")
        lines = [definition(*symbol) for symbol in sorted(symbols.items())]
        source.write_text("\n".join(lines or ["typedef int no_symbols;"]) + "\n")
        command = ["gcc", "-shared", "-fPIC", "-fno-builtin", "-w"]
        command += ["-o", str(target), str(source), f"-Wl,-soname,{target.name}"]
        named = {version: wanted for version, wanted in versions.items() if version}
        if named:
            script = pathlib.Path(folder, "versions.map")
            script.write_text(
                "".join(
                    f"{version} {{ global: {' '.join(f'{name};' for name in sorted(wanted))} }};\n"
                    for version, wanted in sorted(named.items())
                )
            )
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)
    return len(symbols)


def torch_imports():
    return subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0


def main():
    if torch_imports():
        return
    package = importlib.util.find_spec("torch")
    if package is None or not sys.platform.startswith("linux"):
        sys.exit("torch is not installed, or its import fails: try `python -c 'import torch'`")
    folder = pathlib.Path(package.submodule_search_locations[0], "lib")
    libraries = [path for path in sorted(folder.glob("*.so*")) if not TOOLKIT.match(path.name)]
    for name, versions in sorted(wanted_stubs(libraries).items()):
        print(f"{name}: {compile_stub(folder / name, versions)} symbols")
    if not torch_imports():
        sys.exit("torch still does not import: try `python -c 'import torch'`")


if __name__ == "__main__":
    main()
