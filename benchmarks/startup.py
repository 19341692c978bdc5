"""How fast the command answers: `stillroom list`, `--help` and `run kd --help`, beside starting Python and nothing else.

    python benchmarks/startup.py [--runs 20]

Wall seconds of whole processes, in turn, median. The bounds: list < 0.1 s more than Python, --help < 0.3 s, and no torch imported
by either.
"""

import argparse
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "stillroom list": ["-m", "stillroom.cli", "list"],
    "stillroom show kd": ["-m", "stillroom.cli", "show", "kd"],
    "stillroom --help": ["-m", "stillroom.cli", "--help"],
    "stillroom run kd --help": ["-m", "stillroom.cli", "run", "kd", "--help"],
}


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--runs", type=int, default=20)
    times = {name: [] for name in COMMANDS}
    for _ in range(options.parse_args().runs + 1):
        for name, words in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
            times[name].append(time.perf_counter() - began)
    python = statistics.median(times["python -c pass"][1:])
    print("\nwall seconds, median" + " " * 12 + "more than Python   torch imported")
    for name, words in COMMANDS.items():
        median = statistics.median(times[name][1:])
        probe = (f"import sys\nfrom stillroom.cli import main\nmain({words[2:]!r})\n"
                 "print('torch' in sys.modules, file=sys.stderr)")
        torch = "" if words[0] == "-c" else subprocess.run(
            [sys.executable, "-c", probe], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True).stderr.strip()
        print(f"  {name:26} {median:.3f}   {median - python:8.3f}            {torch}")


if __name__ == "__main__":
    main()
