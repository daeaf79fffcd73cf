// Browsers start no worker from a file, so the search's worker runs in a hidden frame there. As between threads,
// messages are copies and arrive later.
if (location.protocol === "file:") {
  const deliver = (target, Event, message) => {
    const data = structuredClone(message);
    setTimeout(() => target.dispatchEvent(new Event("message", {data})));
  };
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inner = this.frame.contentWindow;
      inner.postMessage = message => deliver(this, MessageEvent, message);
      this.addEventListener("message", event => this.onmessage?.(event));
      const script = inner.document.createElement("script");
      script.src = url;
      this.ready = new Promise(resolve => {
        script.onload = () => resolve(inner);
      });
      inner.document.body.append(script);
    }
    postMessage(message) {
      this.ready.then(inner => deliver(inner, inner.MessageEvent, message));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
