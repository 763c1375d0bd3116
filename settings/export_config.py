"""Settings of the exported student."""

from typing import Annotated

from pydantic import Field

from settings.engine import Section


class ExportConfig(Section):
    """What happens with the exported student at the end of a run."""

    push_to: Annotated[str, Field(pattern=r"^[\w-][\w.-]*/[\w-][\w.-]*$", max_length=200)] | None = None
    """Model repository (`organisation/name`) on the Hugging Face hub that the export is uploaded to at the end.
    The login is that of `hf auth login` or HF_TOKEN, and is checked before the run starts."""
    private: bool = True
    """Whether a repository that is made for it is private."""
