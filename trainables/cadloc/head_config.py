"""Settings of the heads: what reads scene coordinates off features."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from cadloc.global_config import GemFeatures, GlobalFeaturesConfig
from cadloc.settings import Count, NonNegative, Settings

Width: TypeAlias = Annotated[int, Field(ge=16, le=4096)]
Blocks: TypeAlias = Annotated[int, Field(ge=0, le=16)]


class AceHead(Settings):
    """ACE's multi-layer perceptron with homogeneous read-out."""

    name: Literal["ace"] = "ace"
    width: Width = 512
    blocks: Blocks = 1
    homogeneous: bool = True


class GlaceHead(Settings):
    """GLACE (Wang et al., CVPR 2024): ACE's perceptron that is told the image's global feature, and a decoder of
    positions about many centres."""

    name: Literal["glace"] = "glace"
    width: Width = 768
    blocks: Blocks = 1
    ratio: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Width inside the residual blocks, relative to `width`."""
    homogeneous: bool = True
    centres: Count = 50
    """Of the position decoder: the base is their mean, weighted by a softmax. 1: the mean, as in ACE."""
    centres_of: Literal["cameras", "surface"] = "cameras"
    """What is clustered: the camera centres (GLACE), or the surface that the views see, by area."""
    global_features: GlobalFeaturesConfig | None = GemFeatures()
    diffusion: NonNegative = 0.1
    """Standard deviation, per number, of the noise on the global feature in training (GLACE, section 3.3)."""
    query: Literal["own", "retrieved"] = "own"
    """Whose global feature a query is read with: its own, or those of the mapping views nearest to it, the one with
    most inliers winning (R-SCoRe, Jiang et al. 2025): own features of photos leave the domain of renders."""
    retrieved: Annotated[int, Field(ge=1, le=100)] = 10

    @model_validator(mode="after")
    def _some_width_inside(self) -> GlaceHead:
        if int(self.width * self.ratio) < 1:
            raise ValueError(f"ratio = {self.ratio:g} of width = {self.width} leaves no width inside the blocks")
        return self

    @model_validator(mode="after")
    def _retrieved_by_something(self) -> GlaceHead:
        if self.query == "retrieved" and self.global_features is None:
            raise ValueError("query = retrieved: without global_features there is nothing to retrieve views by")
        return self


class AnchorHead(Settings):
    """Names one of many k-means anchors of the mapping views' scene coordinates, then an offset from it."""

    name: Literal["anchor"] = "anchor"
    width: Width = 256
    blocks: Blocks = 1
    anchors: Annotated[int, Field(ge=2, le=65536)] = 2048
    anchors_of: Literal["samples", "surface"] = "samples"
    """What is clustered: the samples' scene coordinates, dense where many views look closely, or the surface that they
    lie on, by area."""
    classification: NonNegative = 1.0
    """Weight of the anchors' cross-entropy."""
    evidence: Literal["loss", "points"] = "loss"
    """What the cross-entropy, and the classifier that training starts from, know of a sample. `loss`: what the loss
    knows, the scene coordinate while it is supervised, under a reprojection loss only the ray through the pixel."""


MemberHead: TypeAlias = Annotated[AceHead | AnchorHead, Field(discriminator="name")]


class EnsembleHead(Settings):
    """One head for each cluster of mapping cameras; a query is answered by the one with most inliers (ACE, "Poker").

    The steps of the training are shared: every member takes its turn with samples of its own cluster.
    """

    name: Literal["ensemble"] = "ensemble"
    members: Annotated[int, Field(ge=2, le=256)] = 4
    member: MemberHead = AceHead()


HeadConfig: TypeAlias = Annotated[AceHead | GlaceHead | AnchorHead | EnsembleHead, Field(discriminator="name")]
