"""The notebooks, run in a fresh kernel; as a command this writes their outputs anew.

python tests/notebooks.py [NAME.ipynb …]
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def kernel_environment():
    """Of a kernel that draws into the notebook and imports this clone."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    kept = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    return kept | {"PYTHONPATH": os.pathsep.join(paths)}


def executed(name):
    """Return the notebook as it is after running it from top to bottom; errors are raised."""
    # Not above: the doctests' collection imports this file where there is no jupyter.
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(FOLDER / name, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    return client.execute(env=kernel_environment())


def cleaned(notebook):
    """Take out what would differ from run to run: the kernel's version, progress bars."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _progress(out)]
    return notebook


def _progress(output):
    """Whether a bar wrote this: its steps, or the end of its line."""
    text = output.get("text")
    return text is not None and ("%|" in text or not text.strip())


def main():
    import nbformat

    for name in sys.argv[1:] or NOTEBOOKS:
        nbformat.write(cleaned(executed(name)), FOLDER / name)
        print(name)


if __name__ == "__main__":
    main()
