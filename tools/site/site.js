(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme-switch");
  const find = document.getElementById("search-box");
  const found = document.getElementById("search-hits");
  const nav = document.getElementById("contents-list");
  const show = () => {
    button.textContent = root.dataset.theme === "dark" ? "Light" : "Dark";
  };
  button.onclick = () => {
    root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("theme", root.dataset.theme);
    } catch (_e) {}
    show();
  };
  show();
  const up = document.body.dataset.up;
  function search() {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    nav.hidden = words.length > 0;
    found.replaceChildren();
    if (!words.length) return;
    const rank = e => {
      const name = e[1].toLowerCase();
      return name === words.join(" ") ? 0 : words.every(w => name.includes(w)) ? 1 : 2;
    };
    const hits = window.SEARCH.filter(e => words.every(w => `${e[0]} ${e[1]} ${e[3]}`.toLowerCase().includes(w)))
      .sort((a, b) => rank(a) - rank(b))
      .slice(0, 30);
    for (const [page, name, link, words_] of hits) {
      const item = document.createElement("li");
      const a = document.createElement("a");
      const small = document.createElement("small");
      a.href = up + link;
      a.append(name, " ");
      small.textContent = page + (words_ ? `: ${words_.slice(0, 110)}` : "");
      a.append(small);
      item.append(a);
      found.append(item);
    }
    if (!hits.length) {
      const item = document.createElement("li");
      item.textContent = "nothing found";
      found.append(item);
    }
  }
  find.addEventListener("input", search);
  document.addEventListener("keydown", e => {
    if (e.key === "/" && !/INPUT|TEXTAREA/.test(document.activeElement.tagName)) {
      e.preventDefault();
      find.focus();
    } else if (e.key === "Escape" && document.activeElement === find) {
      find.value = "";
      search();
      find.blur();
    }
  });
})();
