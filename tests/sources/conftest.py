"""A published dataset in memory, and the faults that a reader names in it; the fixtures of tests that download."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.formats import Published
from tests.archives import limits
from tests.servers import root, s3, s3_server, server, sleeps  # noqa: F401

CURE = "; name a folder or an archive of the pictures instead"


@pytest.fixture
def published():
    """The files of a set by their names, with their content."""

    def publish(contents, **changed):
        return Published("set", {name: lambda content=content: content for name, content in contents.items()}, limits(**changed))

    return publish


@pytest.fixture
def fault_of(published):
    """What is said of files that a reader refuses, without what is said of all."""

    def refuse(read, contents, *arguments, **settings):
        with pytest.raises(PipelineError) as caught:
            read(published(contents), *arguments, **settings)
        message = str(caught.value)
        assert message.startswith("set: ")
        assert message.endswith(CURE)
        return message.removeprefix("set: ").removesuffix(CURE)

    return refuse


@pytest.fixture
def damage_in(message_of):
    """The damage that a message names, without the words around it."""
    return lambda content: message_of(content).removeprefix("pics: is damaged or not an archive: ").removesuffix("; download it again")
