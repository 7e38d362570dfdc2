// Preact and htm, which are scripts with names in `window`, as one module.

const { h, render } = window.preact;

export const { useEffect, useRef, useState } = window.preactHooks;
export const html = window.htm.bind(h);
export { render };
