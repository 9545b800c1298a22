"""`dataset`: data sets and their versions. The bytes themselves travel over SFTP."""

from __future__ import annotations

from gateway.commands.assets import verbs
from gateway.commands.parsing import Noun
from storage.records import AssetKind

NOUN = Noun("dataset", "data sets of your workspace", verbs(AssetKind.DATASET))
