"""A published data set in memory, and what is said of it where it is refused."""

import pytest

from pipeline.core.errors import PipelineError
from pipeline.sources.formats import Published
from tests.archives import limits

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
