//! The named steps of the work on a volume: each is a line in the debug log, and in builds for tests a place at which
//! the whole process can be stopped, to be killed there or to have the power cut.
//!
//! Such a build has the feature `failpoints` and debug assertions, which no release build has: there nothing is left
//! of it but the log line.

use std::fmt;

use crate::volume::VolumeId;

macro_rules! steps {
    ($($(#[$doc:meta])* $variant:ident = $name:literal),+ $(,)?) => {
        /// A step that was reached.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Step { $($(#[$doc])* $variant),+ }

        impl Step {
            /// Every step.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name, as the log tells it.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

steps! {
    /// CreateVolume: the record is stored; there is no file.
    KeyCreated = "key created",
    /// CreateVolume, or NodePublishVolume of an ephemeral volume: the file is there.
    FileCreated = "file created",
    /// NodeStageVolume has looked, and has something to do.
    Staging = "staging",
    /// The device is there.
    Attached = "attached",
    /// The key service has given the key.
    KeyReleased = "key released",
    /// First stage: nobody else has the device, and it is blank or ours.
    Claimed = "claimed",
    /// First stage: the record says formatting.
    FormatBegun = "format begun",
    /// First stage: the device's first 4 KiB are zeros, so that no half header can be taken for a whole one.
    HeaderCleared = "header cleared",
    /// First stage: the header is written but for its first 4 KiB.
    HeaderBodyWritten = "header body written",
    /// First stage: the header is whole.
    HeaderWritten = "header written",
    /// First stage: the mapping is open, and its header is the one that lies on the device.
    FirstOpened = "first opened",
    /// First stage: the file system is made.
    FilesystemMade = "file system made",
    /// First stage: the finish mark is written.
    Marked = "marked",
    /// First stage: the record says ready.
    Ready = "ready",
    /// Unlock: the header is the one that the record knows.
    HeaderAuthenticated = "header authenticated",
    /// The mapping is open, and the key dropped; for an ephemeral volume nobody has that key any more.
    Opened = "opened",
    /// The file system is mounted.
    Mounted = "mounted",
    /// NodeUnstageVolume, or NodeUnpublishVolume of an ephemeral volume: nothing of the volume is mounted.
    Unmounted = "unmounted",
    /// The same: the mapping is closed.
    Closed = "closed",
    /// The same: the device is detached, and the disk has what was written to a volume that is not ephemeral.
    Detached = "detached",
    /// ControllerExpandVolume: the file has its new size.
    FileGrown = "file grown",
    /// NodeExpandVolume: the device has the size of its file.
    DeviceGrown = "device grown",
    /// NodeExpandVolume: the mapping has the size of its device.
    MappingGrown = "mapping grown",
    /// NodeExpandVolume: the file system has the size of its mapping.
    FilesystemGrown = "file system grown",
    /// DeleteVolume: the key is destroyed; the file is still there.
    KeyDestroyed = "key destroyed",
    /// DeleteVolume, or NodeUnpublishVolume of an ephemeral volume: the file is gone.
    FileRemoved = "file removed",
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Tells that a step was reached.
pub(crate) fn reached(step: Step, volume_id: &VolumeId) {
    tracing::debug!(%volume_id, "{step}");
    #[cfg(all(feature = "failpoints", debug_assertions))]
    stop_at(step);
}

/// Stops this whole process (SIGSTOP) at the step that the variable `STOP_AT` names. Only `kill -9`, a power cut or
/// SIGCONT comes after that; what the process has started goes on.
#[cfg(all(feature = "failpoints", debug_assertions))]
fn stop_at(step: Step) {
    static STOP_AT: std::sync::LazyLock<Option<String>> = std::sync::LazyLock::new(|| std::env::var("STOP_AT").ok());
    if STOP_AT.as_deref() == Some(step.as_str()) {
        // A process that cannot stop itself goes on, and the test that waits for it fails.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::STOP);
        // Another thread may have taken the signal: this one goes no further meanwhile.
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
