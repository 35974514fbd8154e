// A browser starts no worker for a page that was opened from a disk. What the search asks of one, a hidden frame does.
"use strict";
if (location.protocol === "file:") {
  // The theme's script looks for this name to know that it runs in a frame.
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(address) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.appendChild(this.frame);
      const inside = this.frame.contentDocument;
      this.ready = new Promise((done) => this.frame.contentWindow.started = done);
      inside.open();
      inside.write(`<!doctype html><script>
        postMessage = (data) => parent.postMessage(data, "*");
        importScripts = (...files) => files.reduce((before, file) => before.then(() => new Promise((loaded, failed) => {
          const script = document.createElement("script");
          Object.assign(script, {src: file, onload: loaded, onerror: failed});
          document.head.appendChild(script);
        })), Promise.resolve());
      <\/script><script src="${address}" onload="started()"><\/script>`);
      inside.close();
      window.addEventListener("message", (event) => {
        if (event.source !== this.frame.contentWindow) return;
        const answer = new MessageEvent("message", {data: event.data});
        this.dispatchEvent(answer);
        if (this.onmessage) this.onmessage(answer);
      });
    }
    postMessage(data) {
      // Whose own postMessage now leads out of it.
      const inside = this.frame.contentWindow;
      this.ready.then(() => inside.dispatchEvent(new inside.MessageEvent("message", {data})));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
