//! One connection to the broker, plain or with TLS, within its time.

use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lapin::tcp::{AMQPUriTcpExt as _, AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties};
use tokio::runtime::Handle;

use super::fault::Fault;
use super::filter::filtered;
use super::settings::Settings;

/// Connects and logs in. lapin's own recovery stays off: it has open issues, and which messages are still ours is known
/// only if every connection is distinguished from the last.
pub(super) async fn open(settings: &Settings, authorities: Option<&str>) -> Result<Connection, Fault> {
    let limit = Duration::from_millis(settings.connect_timeout_ms);
    let plug = Plug::default();
    let inside = plug.clone();
    let tls = OwnedTLSConfig { identity: None, cert_chain: authorities.map(str::to_owned) };
    let properties = ConnectionProperties::default().with_connection_name("atelier".into());
    let handle = Handle::current();
    let opening = Connection::connector(
        uri(settings),
        lapin::runtime::default_runtime()?,
        async move |uri: AMQPUri, runtime| {
            let stream = uri.connect_with_config_async(tls.as_ref(), &runtime);
            let stream = tokio::time::timeout(limit, stream).await;
            let stream = stream.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
            let socket = match &stream {
                AsyncTcpStream::Plain(plain) => Some(plain.get_ref()),
                AsyncTcpStream::Rustls(tls) => Some(tls.get_ref().0.get_ref()),
                _ => None,
            };
            if let Some(socket) = socket {
                inside.fit(TcpStream::from(socket.as_fd().try_clone_to_owned()?));
            }
            Ok(filtered(stream, &handle)?)
        },
        properties,
    );
    let Ok(opened) = tokio::time::timeout(limit, opening).await else {
        plug.pull();
        return Err(Fault::silent(format!("no answer within {} ms", settings.connect_timeout_ms)));
    };
    opened.map_err(|error| explained(error.into(), settings))
}

/// A second handle on the connection's socket. lapin's thread waits for ever on a broker that takes the connection and then
/// says nothing; closing the socket ends the thread.
#[derive(Clone, Default)]
struct Plug(Arc<Mutex<Option<TcpStream>>>);

impl Plug {
    fn fit(&self, socket: TcpStream) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(socket);
    }

    fn pull(&self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Fails only where the other side was faster.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn uri(settings: &Settings) -> AMQPUri {
    AMQPUri {
        scheme: if settings.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: settings.user.clone(), password: settings.password.reveal().to_owned() },
            host: settings.broker().unwrap_or_default().to_owned(),
            port: settings.port,
        },
        vhost: settings.vhost.clone(),
        query: AMQPQueryString { heartbeat: Some(settings.heartbeat_seconds), ..AMQPQueryString::default() },
    }
}

fn explained(fault: Fault, settings: &Settings) -> Fault {
    if !fault.refused {
        return fault;
    }
    let user = &settings.user;
    let vhost = &settings.vhost;
    let what = "check sources.rabbitmq.user, .password and .vhost (RABBITMQ_USER, RABBITMQ_PASS)";
    Fault::refused(format!("user {user:?} was not let into vhost {vhost:?} ({}); {what}", fault.problem))
}
