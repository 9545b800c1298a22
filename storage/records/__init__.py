"""The domain model: one class per concept, with small pure methods and no I/O."""

from storage.records.application import Application, ApplicationState
from storage.records.artifact import Artifact, ArtifactState
from storage.records.asset import (
    Asset,
    AssetKind,
    AssetShare,
    AssetUse,
    AssetVersion,
    Deletion,
    FileFact,
    VersionState,
)
from storage.records.base import Record, new_id
from storage.records.build import Build, BuildState
from storage.records.environment import Environment, EnvironmentKey, EnvironmentState, Lifecycle, LostEnvironment, Wish
from storage.records.gpu import Gpu, GpuMode
from storage.records.host import Host, HostState
from storage.records.image import ARCHIVE_OVER, ArchiveState, Image, ImageArchive, ImageKind, ImageState
from storage.records.importing import Import, ImportFile, ImportState
from storage.records.published_port import PublishedPort
from storage.records.quota import UNLIMITED, Holder, Quota, QuotaWarning
from storage.records.session import AuditEvent, AuditHead, Recording, SshSession
from storage.records.upload import Move, Upload, UploadState
from storage.records.user import Invite, SshKey, User, Workspace

__all__ = [
    "UNLIMITED",
    "ARCHIVE_OVER",
    "ArchiveState",
    "Artifact",
    "ArtifactState",
    "Application",
    "ApplicationState",
    "Asset",
    "AssetKind",
    "AssetShare",
    "AssetUse",
    "AssetVersion",
    "AuditEvent",
    "AuditHead",
    "Build",
    "BuildState",
    "Deletion",
    "Environment",
    "EnvironmentKey",
    "EnvironmentState",
    "FileFact",
    "Gpu",
    "GpuMode",
    "Holder",
    "Host",
    "HostState",
    "Image",
    "ImageArchive",
    "ImageKind",
    "ImageState",
    "Import",
    "ImportFile",
    "ImportState",
    "Invite",
    "Lifecycle",
    "LostEnvironment",
    "PublishedPort",
    "Quota",
    "QuotaWarning",
    "Record",
    "Move",
    "Recording",
    "SshKey",
    "SshSession",
    "Upload",
    "UploadState",
    "User",
    "VersionState",
    "Wish",
    "Workspace",
    "new_id",
]
