//! A certificate authority and a server certificate for 127.0.0.1, made with the `openssl` command.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::tools::run;

/// The files of a throwaway certificate authority and of the server certificate that it signed.
#[derive(Debug)]
pub struct Certificates {
    /// What a client has to trust.
    pub ca_file: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in a directory.
    ///
    /// The authority and the leaf are two certificates, because rustls refuses an authority as a server certificate.
    #[track_caller]
    pub fn create(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name);
        let openssl = |arguments: &[&str]| {
            run(Command::new("openssl").current_dir(dir).args(arguments)).ok();
        };
        std::fs::write(
            path("leaf.ext"),
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n\
             subjectAltName=IP:127.0.0.1,DNS:localhost\n",
        )
        .expect("write extensions");
        openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "30",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-subj",
            "/CN=Walden test authority",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        ]);
        openssl(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            "leaf.key",
            "-out",
            "leaf.csr",
            "-subj",
            "/CN=localhost",
        ]);
        openssl(&[
            "x509",
            "-req",
            "-in",
            "leaf.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "30",
            "-extfile",
            "leaf.ext",
            "-out",
            "leaf.pem",
        ]);
        Self { ca_file: path("ca.pem"), certificate: path("leaf.pem"), key: path("leaf.key") }
    }
}
