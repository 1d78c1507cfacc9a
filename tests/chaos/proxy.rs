//! A small TCP proxy between one process and PostgreSQL, which can cut, slow down, or black-hole what it carries.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

pub(crate) const PASS: u8 = 0;
pub(crate) const SLOW: u8 = 1;
/// Takes what is sent, and neither delivers nor answers: nobody is told that the line is dead.
pub(crate) const BLACK_HOLE: u8 = 2;

#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    mode: Arc<AtomicU8>,
    cut: Arc<Notify>,
}

impl Proxy {
    pub(crate) async fn start(to: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy {
            port: listener.local_addr().unwrap().port(),
            mode: Arc::default(),
            cut: Arc::default(),
        };
        let accepting = proxy.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(accepting.clone().carry(near, to));
            }
        });
        proxy
    }

    pub(crate) fn set(&self, mode: u8) {
        self.mode.store(mode, Ordering::Relaxed);
    }

    /// Ends every connection.
    pub(crate) fn cut(&self) {
        self.cut.notify_waiters();
    }

    async fn carry(self, near: TcpStream, to: u16) {
        let cut = self.cut.clone();
        let cut = cut.notified();
        let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else {
            return;
        };
        near.set_nodelay(true).ok();
        far.set_nodelay(true).ok();
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::select! {
            () = cut => {}
            () = self.forward(near_in, far_out) => {}
            () = self.forward(far_in, near_out) => {}
        }
    }

    async fn forward(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            match self.mode.load(Ordering::Relaxed) {
                SLOW => tokio::time::sleep(Duration::from_millis(30)).await,
                // What it swallowed is gone for good: the connection must never speak again.
                BLACK_HOLE => std::future::pending().await,
                _ => {}
            }
            if to.write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    }
}
