// The clock of a page: asks the kernel through a hidden field, and tells when it last answered.
const said = document.getElementById("said");
let page = null;
try {
  page = window.parent.document;
} catch (_e) {
  page = null;
} // a frame that may not look out (VS Code)
const find = name => page?.querySelector(`.${PANEL} ${name}`);
const begin = Date.now();
let number = begin;
let heard = 0;
let last = null;

function ink() {
  const around = window.frameElement?.parentElement;
  if (around) document.body.style.color = getComputedStyle(around).color;
}
function ask() {
  const field = find(".cadm-beat input");
  if (!field) return;
  field.value = String(++number);
  for (const kind of ["input", "change"]) field.dispatchEvent(new Event(kind, {bubbles: true}));
}
function look() {
  const box = find(".cadm-answer");
  let answer = null;
  try {
    answer = JSON.parse(box.textContent);
  } catch (_e) {
    answer = null;
  }
  const now = Date.now();
  if (answer && answer.beat !== last && +answer.beat > begin) {
    last = answer.beat;
    heard = now;
  }
  const silent = Math.round((now - (heard || begin)) / 1000);
  const clock = new Date(heard || now).toTimeString().slice(0, 8);
  const late = silent >= 8;
  const why = window.innerWidth < 380 ? "" : " (kernel busy or gone)";
  said.style.color = late ? "#e5484d" : "inherit";
  said.style.fontWeight = late ? "600" : "400";
  if (!page || !box) said.textContent = "press Refresh to look again";
  else if (late) said.textContent = `${heard ? `as of ${clock}: ` : ""}no answer for ${silent} s${why}`;
  else if (heard) said.textContent = `${answer?.going ? "● live" : "○ nothing runs"}, seen ${clock}`;
}
ink();
setInterval(ink, 3000);
setInterval(look, 500);
setTimeout(ask, 300);
setInterval(ask, 1000 * SECONDS);
