"""The Dockerfile of a server for one model: the packages that serving needs, no others, and nothing that runs as root."""

import platform
import shlex
from importlib.metadata import version
from pathlib import Path

PACKAGES = (
    "fastapi",
    "httptools",
    "numpy",
    "onnxruntime",
    "pillow",
    "prometheus-client",
    "python-multipart",
    "ruamel-yaml",
    "safetensors",
    "uvicorn",
)
_TEMPLATE = """\
# A server for one model, one process per container; more copies are more containers.
FROM python:{python}-slim
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 DVC_ROOT=/srv
RUN pip install --no-cache-dir \\
{packages}
WORKDIR /srv
COPY pipeline pipeline
# Another model is mounted in place of this one: -v /path/of/its/folder:/srv/model:ro
COPY {model} model
RUN useradd --system --uid 10001 --no-create-home server
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s CMD ["python", "-c", \\
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/live', timeout=2)"]
ENTRYPOINT ["python", "-m", "pipeline", "serve", "--model", "/srv/model", "--host", "0.0.0.0"]
"""


def dockerfile(folder: Path) -> str:
    """The content of a Dockerfile for the model in a folder, which must be below the project's root, the folder of the build."""
    packages = " \\\n".join(f"    {name}=={version(name)}" for name in PACKAGES)
    python = ".".join(platform.python_version_tuple()[:2])
    return _TEMPLATE.format(python=python, packages=packages, model=folder.as_posix())


def instructions(model: str | None) -> str:
    """The two commands that build and run it. `model`: as the user named it, None for the default."""
    named = f" --model {shlex.quote(model)}" if model else ""
    safe = "--read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges"
    return f"""\
pipeline serve{named} --dockerfile | docker build -t pipeline-server -f - .
docker run {safe} -e PIPELINE_TOKEN -p 127.0.0.1:8000:8000 pipeline-server"""
