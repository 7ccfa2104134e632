// Runs before the theme's scripts.

// Font Awesome otherwise watches the whole page and redraws icons inside widgets while they are being built, which
// breaks the play button of a slider.
window.FontAwesomeConfig = { observeMutations: false };

// require.js takes this as its settings. Widgets look for their icons where require.js believes them to come from, which
// without this line is the folder of the page.
const dist = document.currentScript.dataset.widgets;
window.require = {
  paths: {
    "@jupyter-widgets/base": `${dist}/base`,
    "@jupyter-widgets/controls": `${dist}/controls`,
    "@jupyter-widgets/html-manager": `${dist}/index`,
    "@jupyter-widgets/html-manager/dist": dist,
  },
};

// Widgets typeset their labels through MathJax 2's queue; this is that queue on MathJax 3. They are drawn when the page
// has loaded, by a listener registered after this one.
window.addEventListener("load", () => {
  const { MathJax } = window;
  if (MathJax?.startup && !MathJax.Hub) {
    MathJax.Hub = {
      Queue: ([, , element]) => MathJax.startup.promise.then(() => MathJax.typesetPromise([element])),
    };
  }
});
