//! A RabbitMQ node of its own from Debian's package: its directory, ports, users and certificates die with it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;

use atelier::host::source::rabbitmq::settings::Settings;
use lapin::{Channel, Connection, ConnectionProperties};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::{OnceCell, oneshot};

use super::{DEADLINE, packages};

const SERVER: &str = "usr/lib/rabbitmq/bin/rabbitmq-server";
const CONTROL: &str = "usr/lib/rabbitmq/bin/rabbitmqctl";
const ADMIN: &str = "usr/bin/rabbitmqadmin";
const EPMD: &str = "usr/bin/epmd";
const OPENSSL: &str = "usr/bin/openssl";
/// May publish and consume, but make nothing.
pub(crate) const LIMITED: &str = "limited";

pub(crate) struct RabbitMq {
    pub(crate) port: u16,
    pub(crate) tls_port: u16,
    directory: TempDir,
    ports: [u16; 2],
    /// Where nodes find each other; ours finds itself.
    epmd: Child,
    /// None while it is shut down.
    server: Option<Child>,
    /// Ends what is left of all this when the tests do: the shared node is never dropped.
    guard: Child,
}

fn is_installed(what: &str) -> bool {
    packages::are_there(what, &[SERVER, CONTROL, EPMD, OPENSSL].map(packages::path))
}

/// The node that tests share; each has a queue of its own. To start one costs nine seconds of a core.
pub(crate) async fn shared_or_skip(what: &str) -> Option<Arc<RabbitMq>> {
    static SHARED: OnceCell<Arc<RabbitMq>> = OnceCell::const_new();
    if !is_installed(what) {
        return None;
    }
    let node = SHARED.get_or_init(|| async { Arc::new(RabbitMq::start("").await) });
    Some(Arc::clone(node.await))
}

/// A node for one test, which may do with it what it likes. `conf`: lines for its rabbitmq.conf.
pub(crate) async fn own_or_skip(what: &str, conf: &str) -> Option<RabbitMq> {
    if is_installed(what) { Some(RabbitMq::start(conf).await) } else { None }
}

impl RabbitMq {
    async fn start(conf: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let [port, tls_port, distribution, mapper] = free_ports();
        certificates(directory.path());
        configure(directory.path(), port, tls_port, conf);
        let epmd = packages::command(EPMD)
            .args(["-address", "127.0.0.1", "-port", &mapper.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("epmd of the package");
        let ports = [distribution, mapper];
        let server = boot(directory.path(), port, ports).await;
        let guard = guard(directory.path(), &epmd);
        Self { port, tls_port, directory, ports, epmd, server: Some(server), guard }
    }

    /// The broker is shut down. (One that is killed in the first second of a queue's life does not find it again: 3.10.8.)
    pub(crate) async fn stop(&mut self) {
        let mut server = self.server.take().expect("the node runs");
        self.signal(Signal::TERM);
        let ended = tokio::task::spawn_blocking(move || server.wait());
        let ended = tokio::time::timeout(DEADLINE, ended).await.expect("the node ends in time").expect("a thread");
        ended.expect("the server script");
    }

    /// And comes back with what it knew.
    pub(crate) async fn start_again(&mut self) {
        self.server = Some(boot(self.directory.path(), self.port, self.ports).await);
    }

    /// `rabbitmqctl` for this node.
    pub(crate) async fn control(&self, arguments: &[&str]) {
        let mut control = tokio::process::Command::from(packages::command(CONTROL));
        control.args(arguments).envs(environment_of(self.directory.path(), self.port, self.ports));
        let output = tokio::time::timeout(DEADLINE, control.output()).await.expect("an answer in time").expect("rabbitmqctl");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A directory with `rabbitmqctl`, `rabbitmq-plugins` and `rabbitmqadmin` for this node, whose management listens on that port.
    pub(crate) fn tools(&self, management_port: u16) -> TempDir {
        use std::os::unix::fs::PermissionsExt as _;
        let tools = tempfile::tempdir().expect("a temporary directory");
        let of_node = environment_of(self.directory.path(), self.port, self.ports);
        let variables = packages::variables().into_iter().chain(of_node);
        let exports = variables.fold(String::new(), |exports, (name, value)| exports + &format!("export {name}='{value}'\n"));
        let plugins = CONTROL.replace("rabbitmqctl", "rabbitmq-plugins");
        for (name, program, options) in [
            ("rabbitmqctl", CONTROL, String::new()),
            ("rabbitmq-plugins", &plugins, String::new()),
            ("rabbitmqadmin", ADMIN, format!("--host=127.0.0.1 --port={management_port}")),
        ] {
            let program = packages::path(program);
            let script = tools.path().join(name);
            fs::write(&script, format!("#!/bin/sh\n{exports}exec '{}' {options} \"$@\"\n", program.display()))
                .expect("a script");
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("a program");
        }
        tools
    }

    /// To the node; the server script ends with it.
    fn signal(&self, signal: Signal) {
        let pid = fs::read_to_string(self.file("pid")).expect("the node's process id").trim().parse().expect("a number");
        kill_process(Pid::from_raw(pid).expect("a process id"), signal).expect("the node runs");
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Settings for a queue of this node, which is made.
    pub(crate) fn settings(&self, queue: &str) -> Settings {
        Settings {
            host: Some("127.0.0.1".into()),
            port: self.port,
            queue: queue.into(),
            declare: true,
            heartbeat_seconds: 5,
            connect_timeout_ms: 5_000,
            ..Settings::default()
        }
    }

    /// A second client next to the one that is tested.
    pub(crate) async fn peer(&self) -> (Connection, Channel) {
        let address = format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.port);
        let connection = Connection::connect(&address, ConnectionProperties::default()).await.expect("a connection");
        let channel = connection.create_channel().await.expect("a channel");
        channel.confirm_select(lapin::options::ConfirmSelectOptions::default()).await.expect("confirms");
        (connection, channel)
    }
}

impl Drop for RabbitMq {
    fn drop(&mut self) {
        let _ = self.guard.kill();
        let _ = self.guard.wait();
        if let Some(mut server) = self.server.take() {
            // On SIGTERM it takes six seconds, and it has nothing to lose.
            self.signal(Signal::KILL);
            let _ = server.wait();
        }
        let _ = self.epmd.kill();
        let _ = self.epmd.wait();
    }
}

/// What shows the package's scripts which node is meant.
fn environment_of(directory: &Path, port: u16, [distribution, mapper]: [u16; 2]) -> Vec<(&'static str, String)> {
    let path = |name: &str| directory.join(name).display().to_string();
    vec![
        ("HOME", path("")),
        ("ERL_EPMD_PORT", mapper.to_string()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        ("RABBITMQ_NODENAME", format!("test{port}@localhost")),
        ("RABBITMQ_NODE_PORT", port.to_string()),
        ("RABBITMQ_DIST_PORT", distribution.to_string()),
        ("RABBITMQ_MNESIA_BASE", path("data")),
        ("RABBITMQ_LOG_BASE", path("log")),
        ("RABBITMQ_PID_FILE", path("pid")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins")),
        ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", path("advanced.config")),
        ("RABBITMQ_CONF_ENV_FILE", path("none")),
    ]
}

async fn boot(directory: &Path, port: u16, ports: [u16; 2]) -> Child {
    let mut server = packages::command(SERVER)
        .envs(environment_of(directory, port, ports))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("rabbitmq-server of the package");
    let mut log = BufReader::new(server.stdout.take().expect("its stdout")).lines();
    let (ready, is_ready) = oneshot::channel();
    thread::spawn(move || {
        let mut said = Vec::new();
        for line in log.by_ref().map_while(Result::ok) {
            let done = line.contains("Starting broker") && line.contains("completed");
            said.push(line);
            if done {
                let _ = ready.send(Ok(()));
                log.for_each(drop);
                return;
            }
        }
        let _ = ready.send(Err(said.join("\n")));
    });
    // Two cores that compile next to it make it slow: minutes were seen.
    let said = tokio::time::timeout(DEADLINE * 8, is_ready).await.expect("the node starts in time").expect("its log");
    said.unwrap_or_else(|log| panic!("the node did not start:\n{log}"));
    server
}

/// Waits for the end of the pipe that this process holds, however it ends.
fn guard(directory: &Path, epmd: &Child) -> Child {
    const SCRIPT: &str = r#"read -r _; kill -9 "$2" $(cat "$1/pid") 2> /dev/null; rm -rf "$1""#;
    Command::new("sh")
        .args(["-c", SCRIPT, "guard"])
        .arg(directory)
        .arg(epmd.id().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a shell")
}

fn free_ports() -> [u16; 4] {
    let held = [(); 4].map(|()| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("its address").port())
}

fn configure(directory: &Path, port: u16, tls_port: u16, conf: &str) {
    let path = |name: &str| directory.join(name).display().to_string();
    let conf = format!(
        "listeners.tcp.1 = 127.0.0.1:{port}\n\
         listeners.ssl.1 = 127.0.0.1:{tls_port}\n\
         ssl_options.cacertfile = {}\n\
         ssl_options.certfile = {}\n\
         ssl_options.keyfile = {}\n\
         ssl_options.verify = verify_none\n\
         ssl_options.fail_if_no_peer_cert = false\n\
         load_definitions = {}\n\
         {conf}\n",
        path("ca.pem"),
        path("server.pem"),
        path("server.key"),
        path("definitions.json"),
    );
    let all = json!({ "user": "guest", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*" });
    let limited = json!({ "user": LIMITED, "vhost": "/", "configure": "", "write": ".*", "read": ".*" });
    let definitions = json!({
        "users": [
            { "name": "guest", "password": "guest", "tags": "administrator" },
            { "name": LIMITED, "password": LIMITED, "tags": "" },
        ],
        "vhosts": [{ "name": "/" }],
        "permissions": [all, limited],
    });
    fs::write(directory.join("rabbitmq.conf"), conf).expect("its configuration");
    fs::write(directory.join("definitions.json"), definitions.to_string()).expect("its definitions");
    // How often it looks for consumers that hold a message for too long.
    fs::write(directory.join("advanced.config"), "[{rabbit, [{channel_tick_interval, 500}]}].").expect("its configuration");
}

/// An authority and a certificate for the loopback address.
fn certificates(directory: &Path) {
    let openssl = |arguments: &str| {
        let output = packages::command(OPENSSL).args(arguments.split(' ')).current_dir(directory).output().expect("openssl");
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    fs::write(directory.join("names"), "subjectAltName=DNS:localhost,IP:127.0.0.1").expect("a file");
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"));
    openssl(&format!("req {key} -keyout server.key -out server.csr -subj /CN=localhost"));
    openssl("x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile names");
}
