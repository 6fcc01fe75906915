//! Debian's Chromium without a window, on one of a cluster's hosts, driven by its DevTools protocol over a pipe.
//!
//! Messages are JSON with a zero byte behind each. Ends when dropped, and after five minutes in any case, so that a
//! browser that hangs fails its test. Source: <https://chromedevtools.github.io/devtools-protocol/>.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Host};
use crate::wait;

/// A running browser with one page.
#[derive(Debug)]
pub struct Browser {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Option<String>,
    number: u64,
}

impl Browser {
    /// Starts the browser with a page of this size in pixels.
    ///
    /// # Panics
    ///
    /// If it can't be started; `scripts/setup` installs it.
    pub fn start(cluster: &Cluster, host: Host, (width, height): (u32, u32)) -> Self {
        let folder = cluster.state().join("chromium");
        // Its descriptors 3 and 4 are the pipe. As root it has no sandbox; it sees pages of the test alone.
        let chromium = format!(
            "exec timeout 300 chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage \
             --remote-debugging-pipe --window-size={width},{height} --user-data-dir={} \
             3<&0 4>&1 </dev/null >/dev/null",
            folder.display()
        );
        let mut command = cluster.command(host, "bash");
        command.args(["-c", &chromium]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = command.spawn().expect("scripts/netlab can be started");
        let requests = process.stdin.take().expect("it was asked for above");
        let answers = BufReader::new(process.stdout.take().expect("it was asked for above"));
        let mut this = Self { process, requests, answers, session: None, number: 0 };
        let target = this.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = this.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        this.session = attached["sessionId"].as_str().map(str::to_owned);
        this
    }

    /// Opens a page.
    pub fn open(&mut self, url: &str) {
        let opened = self.call("Page.navigate", json!({ "url": url }));
        assert_eq!(opened["errorText"], Value::Null, "{url}");
    }

    /// Calls a method of the protocol and returns its result.
    ///
    /// # Panics
    ///
    /// With the error if it is refused, or if the browser has ended.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.number += 1;
        let mut request = json!({ "id": self.number, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            request["sessionId"] = json!(session);
        }
        write!(self.requests, "{request}\0").expect("chromium has ended; scripts/setup installs it");
        loop {
            let mut bytes = Vec::new();
            self.answers.read_until(0, &mut bytes).expect("the pipe can be read");
            assert_eq!(bytes.pop(), Some(0), "chromium has ended; scripts/setup installs it");
            let message: Value = serde_json::from_slice(&bytes).expect("JSON");
            if message["id"] == self.number {
                assert_eq!(message["error"], Value::Null, "{method}");
                return message["result"].clone();
            }
        }
    }

    /// Sets the size of the page in pixels, and whether it is light or dark.
    pub fn look(&mut self, (width, height): (u32, u32), is_phone: bool, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", media);
    }

    /// A picture of the page as PNG.
    ///
    /// # Panics
    ///
    /// If the browser sends none.
    pub fn picture(&mut self) -> Vec<u8> {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }));
        let data = picture["data"].as_str().expect("a picture");
        BASE64_STANDARD.decode(data).expect("Base64")
    }

    /// The value of an expression of JavaScript in the page.
    ///
    /// # Panics
    ///
    /// With the exception if it throws one.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.call("Runtime.evaluate", parameters);
        assert_eq!(result["exceptionDetails"], Value::Null, "{expression}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression has this value.
    #[track_caller]
    pub fn until(&mut self, expression: &str, wanted: impl Into<Value>) {
        let wanted = wanted.into();
        wait::until(&format!("{expression} is {wanted}"), || {
            (self.value(expression) == wanted).then_some(())
        });
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Without its session it is a request to the browser; one that has ended refuses it.
        self.session = None;
        let close = json!({ "id": 0, "method": "Browser.close" });
        let _ = write!(self.requests, "{close}\0");
        let _ = self.process.wait();
    }
}
