"""Benchmarks of what this project exists for; ``python -m benchmarks`` (``make bench``) runs them all.

Convention for a benchmark module ``benchmarks/<name>.py``:

- Its docstring's first line says what is measured; the runner shows it.
- ``main(quick: bool = False) -> dict`` measures and returns one JSON-serialisable dictionary::

      {
          "title":   "one line",
          "rows":    [{"method": "...", "pairs_per_second": 1.0, ...}, ...],   # becomes the readable table
          "ratios":  {"block trainer / notebook loop": 400.0, ...},  # optional, from one run
          "skipped": {"scvi": "scvi-tools is not installed"},                  # optional, with the reason
          "notes":   ["..."],                                                  # optional
      }

  Keys of a row may differ from row to row; values are numbers, strings, booleans or None.
  ``quick=True`` shrinks sizes so that the module ends in about 30 seconds, and still measures everything.
- As a script (``python -m benchmarks.<name> [--quick]``) it prints exactly that one JSON document, completed
  by ``harness`` with ``benchmark``, ``quick``, ``seconds``, ``peak_rss_mib`` and ``machine``, to standard
  output; everything else goes to standard error. End the module with::

      if __name__ == "__main__":
          harness.script(main)

- ``requires() -> str | None`` (optional) gives the reason why the benchmark cannot run on this machine at all
  (no CUDA device, missing data); the runner then reports it as skipped.

The runner starts each module as its own process, so that peak memory is the benchmark's own, and writes
``benchmarks/results/<name>.json`` (``<name>.quick.json`` with ``--quick``) and ``summary.md`` beside them.
A module is a benchmark when its file defines ``main``; nothing has to be registered.
"""
