//! Child processes that cannot outlive us.
//!
//! Every child asks the kernel for a signal when its parent dies (`PR_SET_PDEATHSIG`, Linux), so
//! that even `kill -9` of the parent leaves no orphan. Two traps shape this file: that request is
//! tied to the *thread* that started the child, and it is forgotten when the child changes its user.
//! So one thread, which lives as long as the process, starts every child, and the request is made
//! after the change of user, in the child.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use tokio::sync::watch;

use crate::run_as::RunAs;

/// A log file larger than this is set aside as `<name>.1` before a new run appends to it.
const LOG_MAX_BYTES: u64 = 20 * 1024 * 1024;

/// Where a child's output goes.
#[derive(Clone, Debug)]
pub enum Output {
    /// Both streams are appended to this file.
    Log(PathBuf),
    /// Ours; for a command that the user asked us to run.
    Inherit,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Short name for messages.
    pub name: &'static str,
    /// The executable.
    pub program: PathBuf,
    /// What the program sees as its own name, when that differs.
    pub arg0: Option<&'static str>,
    /// Arguments.
    pub args: Vec<OsString>,
    /// Environment variables on top of ours.
    pub env: Vec<(String, OsString)>,
    /// Working folder; ours when `None`.
    pub folder: Option<PathBuf>,
    /// Fed to its standard input (at most 4 KiB), which is closed afterwards.
    pub stdin: Option<String>,
    /// Where it writes.
    pub output: Output,
    /// Its user.
    pub run_as: RunAs,
    /// What it gets when we die.
    pub death_signal: Signal,
    /// When it is stopped by [`stop_everything`]: lower numbers first, 0 for programs.
    pub stop_order: u8,
}

/// A running child; clones speak of the same one. Dropping it does not stop it: call
/// [`Process::stop`], or [`stop_everything`] on the way out.
#[derive(Clone, Debug)]
pub struct Process {
    /// Short name for messages.
    pub name: &'static str,
    /// Process id.
    pub pid: u32,
    death_signal: Signal,
    stop_order: u8,
    exit: watch::Receiver<Option<ExitStatus>>,
}

/// Everything started and not yet known to have ended.
struct Running {
    processes: Vec<Process>,
    /// Nothing more may be started.
    closed: bool,
}

static RUNNING: Mutex<Running> = Mutex::new(Running { processes: Vec::new(), closed: false });

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Launch {
    /// A launch with nothing but a program; the caller fills in the rest.
    pub fn new(name: &'static str, program: impl Into<PathBuf>, output: Output) -> Self {
        Self {
            name,
            program: program.into(),
            arg0: None,
            args: Vec::new(),
            env: Vec::new(),
            folder: None,
            stdin: None,
            output,
            run_as: RunAs::Caller,
            death_signal: Signal::TERM,
            stop_order: 0,
        }
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item = S>, S: Into<OsString>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When the program or the log file cannot be opened, or the user cannot be changed.
    pub fn start(self) -> Result<Process> {
        let name = self.name;
        let context = || format!("could not start {name} ({})", self.program.display());
        let mut command = self.command().with_context(context)?;
        command.stdin(match (&self.stdin, &self.output) {
            (Some(_), _) => Stdio::piped(),
            (None, Output::Inherit) => Stdio::inherit(),
            (None, Output::Log(_)) => Stdio::null(),
        });
        // Held over the start: what starts now is seen by `stop_everything`.
        let mut running = running();
        if running.closed {
            bail!("{name} is not started: everything is being stopped");
        }
        let mut child = spawn_on_the_lasting_thread(command).with_context(context)?;
        if let (Some(text), Some(mut pipe)) = (&self.stdin, child.stdin.take()) {
            // Short enough for the pipe's buffer: this cannot block on a child that does not read.
            pipe.write_all(text.as_bytes()).with_context(context)?;
        }
        let pid = child.id();
        let (tell, exit) = watch::channel(None);
        std::thread::Builder::new()
            .name(format!("wait-{name}"))
            .spawn(move || {
                let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0x7f00));
                tell.send_replace(Some(status));
            })
            .with_context(context)?;
        tracing::debug!(process.name = name, process.pid = pid, "started {name}");
        let process =
            Process { name, pid, death_signal: self.death_signal, stop_order: self.stop_order, exit };
        running.processes.retain(|process| process.ended().is_none());
        running.processes.push(process.clone());
        Ok(process)
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env.iter().map(|(key, value)| (key, value)));
        if let Some(arg0) = self.arg0 {
            command.arg0(arg0);
        }
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        match &self.output {
            Output::Log(path) => {
                let log = open_log(path)?;
                command.stdout(log.try_clone()?).stderr(log);
                // Its own group, so that Ctrl-C reaches us alone and we stop things in order.
                command.process_group(0);
            }
            Output::Inherit => {}
        }
        if let RunAs::User { uid, gid } = self.run_as {
            command.uid(uid).gid(gid);
        }
        die_with_the_parent(&mut command, self.death_signal);
        Ok(command)
    }
}

impl Process {
    /// Waits for its end.
    pub async fn wait(&mut self) -> ExitStatus {
        match self.exit.wait_for(Option::is_some).await {
            Ok(status) => status.unwrap_or_else(|| ExitStatus::from_raw(0x7f00)),
            // The waiting thread never drops the sender without telling first.
            Err(_) => ExitStatus::from_raw(0x7f00),
        }
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        if self.ended().is_none() {
            signal_pid(self.pid, signal);
        }
    }

    /// Sends each signal in turn, waiting the given time after each, and finally `SIGKILL`.
    pub async fn stop(&mut self, steps: &[(Signal, Duration)]) -> ExitStatus {
        for (signal, patience) in steps {
            self.signal(*signal);
            if let Ok(status) = tokio::time::timeout(*patience, self.wait()).await {
                return status;
            }
            tracing::warn!(process.name = self.name, "{} did not stop within {patience:?}", self.name);
        }
        self.signal(Signal::KILL);
        self.wait().await
    }
}

/// Stops what still runs, programs before services and the newest first, and starts nothing any
/// more: the last thing a command does. Each process has 20 seconds to end by itself.
pub async fn stop_everything() {
    let mut processes = {
        let mut running = running();
        running.closed = true;
        std::mem::take(&mut running.processes)
    };
    processes.reverse();
    processes.sort_by_key(|process| process.stop_order);
    for mut process in processes {
        if process.ended().is_none() {
            let steps =
                [(process.death_signal, Duration::from_secs(20)), (Signal::QUIT, Duration::from_secs(5))];
            process.stop(&steps).await;
        }
    }
}

/// Sends a signal to a process by id; one that is gone is not an error.
pub fn signal_pid(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        rustix::process::kill_process(pid, signal).ok();
    }
}

/// Whether a process with this id exists, whoever owns it.
pub fn is_alive(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    match rustix::process::test_kill_process(pid) {
        Ok(()) => true,
        Err(errno) => errno == rustix::io::Errno::PERM,
    }
}

/// When a process began, as text to compare: it tells a process from a later one with the same id.
pub fn birth_mark(pid: u32) -> Option<String> {
    if cfg!(target_os = "linux") {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything; the start time is the 22nd field, 20th after it.
        let (_, rest) = stat.rsplit_once(')')?;
        return rest.split_whitespace().nth(19).map(str::to_owned);
    }
    let output = Command::new("ps").args(["-o", "lstart=", "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The last lines of a log file, for an error message.
pub fn log_tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn open_log(path: &Path) -> Result<fs::File> {
    if fs::metadata(path).is_ok_and(|meta| meta.len() > LOG_MAX_BYTES) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        fs::rename(path, aside)?;
    }
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("could not open the log {}", path.display()))
}

type SpawnJob = (Command, mpsc::SyncSender<io::Result<Child>>);

fn spawn_on_the_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: LazyLock<mpsc::Sender<SpawnJob>> = LazyLock::new(|| {
        let (jobs, inbox) = mpsc::channel::<SpawnJob>();
        std::thread::Builder::new()
            .name("spawner".to_owned())
            .spawn(move || {
                for (mut command, answer) in inbox {
                    drop(answer.send(command.spawn()));
                }
            })
            .expect("a process that cannot start one thread cannot start children either");
        jobs
    });
    let gone = || io::Error::other("the spawner thread is gone");
    let (answer, result) = mpsc::sync_channel(1);
    SPAWNER.send((command, answer)).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "pre_exec is the only place after setuid and before exec")]
fn die_with_the_parent(command: &mut Command, signal: Signal) {
    let parent = rustix::process::getpid();
    let hook = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have died before the request: then nobody will ever send the signal.
        if rustix::process::getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the hook makes two system calls and touches no memory of ours:
    // it allocates nothing and takes no lock, which is what an async-signal-safe hook has to keep to.
    unsafe {
        command.pre_exec(hook);
    }
}

#[cfg(not(target_os = "linux"))]
fn die_with_the_parent(_command: &mut Command, _signal: Signal) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_child_that_ignores_the_first_signal_gets_the_last() {
        let log = std::env::temp_dir().join(format!("botledger-deaf-{}", std::process::id()));
        let mut child = Launch::new("deaf", "/bin/sh", Output::Log(log.clone()))
            .args(["-c", "trap '' TERM; echo deaf; while :; do sleep 0.05; done"])
            .start()
            .unwrap();
        while log_tail(&log, 1) != "deaf" {
            tokio::task::yield_now().await;
        }
        assert!(is_alive(child.pid));
        assert!(birth_mark(child.pid).is_some());
        let status = child.stop(&[(Signal::TERM, Duration::from_millis(200))]).await;
        assert_eq!(status.signal(), Some(9));
        assert!(!is_alive(child.pid));
        fs::remove_file(log).unwrap();
    }

    #[tokio::test]
    async fn input_and_exit_status_pass_through() {
        let mut launch = Launch::new("reader", "/bin/sh", Output::Inherit).args(["-c", "read n; exit $n"]);
        launch.stdin = Some("7\n".to_owned());
        let mut child = launch.start().unwrap();
        assert_eq!(child.wait().await.code(), Some(7));
        assert_eq!(child.ended().and_then(|status| status.code()), Some(7));
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Launch::new("ghost", "/no/such/program", Output::Inherit).start().unwrap_err();
        assert!(format!("{error:#}").contains("/no/such/program"));
    }
}
