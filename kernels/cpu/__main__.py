"""`python -m engram.kernels.cpu` builds all C++ kernels for this machine, which otherwise happens on first use."""

from concurrent.futures import ThreadPoolExecutor

from engram.kernels.cpu import ffi


def main() -> None:
    names = sorted(source.stem for source in ffi.SOURCES.glob("*.cc"))
    with ThreadPoolExecutor() as threads:
        built = list(threads.map(ffi.load, names))
    for name, there in zip(names, built, strict=True):
        print(f"{name}: {'built' if there else 'not built; it runs on XLA instead, more slowly'}")


if __name__ == "__main__":
    main()
